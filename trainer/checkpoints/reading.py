"""A commit opened for reading: its JSON sections at once, its tensors when they are asked for, and only the parts that
this rank needs. Every byte is checked against the commit's checksums; nothing that is loaded is ever unpickled."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from trainer.checkpoints.commit import Commit, CommitFolder, Manifest
from trainer.checkpoints.lineage import Lineage
from trainer.checkpoints.read_plan import Request, Target, plan, writable
from trainer.checkpoints.records import check_record
from trainer.checkpoints.tensor_files import (
    LAYOUT,
    MOST_HEADER_BYTES,
    Layout,
    file_sizes,
    layout_of_format_1,
    parsed_layout,
    section_of,
)
from trainer.distributed.node import Node
from trainer.distributed.ranks import rank
from trainer.distributed.sharding import is_sharded
from trainer.errors import DamagedError, TrainingError

IN_FLIGHT = 4  # requests of a rank at once (format 1, whole files: one)


class SavedState:
    """A commit whose manifest, layout and JSON sections have been read and checked. Can be sent to other ranks."""

    def __init__(self, folder: CommitFolder, only: tuple[str, ...] = ()):
        """`only`: the sections that will be asked for; all if empty. Raises TrainingError if it cannot be read."""
        self.folder = folder
        self.manifest: Manifest = folder.manifest()
        wanted = [name for name in self.manifest.files if name != LAYOUT and (not only or section_of(name) in only)]
        self.sections: dict[str, Any] = {
            section_of(name): folder.read_json(self.manifest, name) for name in wanted if name.endswith(".json")
        }
        self.node = Node([rank()], None)  # the ranks that read together
        self.headers: dict[str, bytes] = {}  # of safetensors files, in format 1 only
        self.layout = self._layout([name for name in wanted if name.endswith(".safetensors")])
        if missing := [section for section in only if section not in self.sections and section not in self.layout]:
            raise DamagedError(f"{folder.url}: incomplete checkpoint: it has no {missing[0]}")

    @property
    def commit(self) -> Commit:
        """The commit that this is the state of."""
        return self.folder.commit

    def names(self, section: str) -> list[str]:
        """The names of a section's tensors."""
        return list(self.layout.get(section, {}))

    def tensors(self, section: str) -> dict[str, Tensor]:
        """All tensors of a section, whole, in host memory. Raises DamagedError if a checksum fails."""
        values = self.empty(section)
        self.fill({section: values})
        return values

    def empty(self, section: str) -> dict[str, Tensor]:
        """Tensors for `fill`: those of a section, whole, in host memory."""
        stored = self.layout.get(section, {})
        return {name: torch.empty(tensor.shape, dtype=tensor.dtype) for name, tensor in stored.items()}

    def fill(self, into: Mapping[str, Mapping[str, Tensor]], whole: Collection[str] = ()) -> None:
        """Copy stored tensors into `into` (by section and name), which keeps its devices, strides and dtypes.

        Of a sharded tensor a rank reads only its own part. Other tensors are read once by the ranks of `self.node`
        together, which then must all call this with the same names. `whole`: sections of which nothing stored may be
        left out.

        Raises DamagedError if a checksum fails, TrainingError if a tensor is missing or has another shape.
        """
        own: list[Target] = []
        shared: list[Target] = []
        for section, tensors in into.items():
            if section in whole and (unused := sorted(self.layout.get(section, {}).keys() - tensors.keys())):
                raise TrainingError(f"{self.folder.url}: {section}/{unused[0]} is not in the model")
            for name, value in tensors.items():
                stored = self.layout.get(section, {}).get(name)
                if stored is None:
                    raise TrainingError(f"{self.folder.url}: has no {section}/{name}")
                if stored.shape != tuple(value.shape):
                    shapes = f"has shape {stored.shape}, the model's {tuple(value.shape)}"
                    raise TrainingError(f"{self.folder.url}: {section}/{name} {shapes}")
                together = self.node.group is not None and not is_sharded(value)
                (shared if together else own).append(Target.of(stored, value))
        self._read_together(self._plan(shared))
        for request, data in self._read_ahead(self._plan(own)):
            request.deliver(data())

    # ---- reading

    def _plan(self, targets: list[Target]) -> list[Request]:
        whole_files = {name: digest.bytes for name, digest in self.manifest.files.items()}
        return plan(targets, whole_files if self.manifest.format == 1 else None)

    def _read_ahead(self, requests: list[Request]) -> Iterator[tuple[Request, Callable[[], memoryview]]]:
        """The requests in order, each with a function that waits for its bytes; several are on the way."""
        in_flight = 1 if self.manifest.format == 1 else IN_FLIGHT
        with ThreadPoolExecutor(in_flight, "checkpoint reader") as pool:
            pending: deque[tuple[Request, Future[memoryview]]] = deque()
            ahead = iter(requests)
            try:
                while True:
                    for request in ahead:
                        pending.append((request, pool.submit(self._read, request)))
                        if len(pending) >= in_flight:
                            break
                    if not pending:
                        return
                    request, future = pending.popleft()
                    yield request, future.result
            finally:
                for _, future in pending:
                    future.cancel()

    def _read_together(self, requests: list[Request]) -> None:
        """Each request by one rank of the node, which sends the bytes to the others."""
        node = self.node
        mine = self._read_ahead(requests[node.place :: len(node.ranks)])
        failure: Exception | None = None
        for number, request in enumerate(requests):
            reader = node.ranks[number % len(node.ranks)]
            message = torch.zeros(request.stop - request.start + 1, dtype=torch.uint8)  # the last byte: it was read
            if reader == node.ranks[node.place] and failure is None:
                try:
                    writable(message)[:-1] = next(mine)[1]()
                    message[-1] = 1
                except Exception as error:
                    failure = error
            dist.broadcast(message, reader, group=node.group)
            if not message[-1]:
                raise failure or DamagedError(f"{self.folder.url}: rank {reader} could not read {request.file}")
            try:
                if failure is None:
                    request.deliver(writable(message)[:-1])
            except Exception as error:  # the others learn of it when it is this rank's turn to read
                failure = error
        if failure is not None:
            raise failure

    def _read(self, request: Request) -> memoryview:
        """The bytes of a request; read twice if they are not what was written. Raises DamagedError."""
        try:
            return self._read_once(request)
        except DamagedError:
            return self._read_once(request)

    def _read_once(self, request: Request) -> memoryview:
        if self.manifest.format == 1:
            data = memoryview(self.folder.read_file(self.manifest, request.file))
            damaged = not bytes(data).startswith(self.headers[request.file])
        else:
            data = self.folder.read_range(self.manifest, request.file, request.start, request.stop)
            damaged = request.failed_checksum(data)
        if damaged:
            raise DamagedError(f"{self.folder.url}/{request.file}: its content is not what the manifest says")
        return data

    def _layout(self, files: list[str]) -> Layout:
        """Where the tensors of these files are stored. Raises DamagedError."""
        names = self.manifest.files
        content = self.folder.read_json(self.manifest, LAYOUT) if LAYOUT in names else {}
        sections = {section_of(file) for file in files}
        try:
            content = {section: tensors for section, tensors in content.items() if section in sections}
            if self.manifest.format == 1:
                self.headers = {file: self._header(file) for file in files}
                return layout_of_format_1(content, self.headers)
            layout = parsed_layout(check_record("layout", content))
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise DamagedError(f"{self.folder.url}: its parts do not fit together ({error})") from error
        sizes, expected = file_sizes(layout), {file: names[file].bytes for file in files}
        for file in sorted(sizes.keys() | expected.keys()):
            if sizes.get(file) != expected.get(file):
                raise DamagedError(f"{self.folder.url}: its parts do not fit together ({file})")
        return layout

    def _header(self, file: str) -> bytes:
        """The first bytes of a safetensors file, up to the tensors (checked when the whole file is read)."""
        size = self.manifest.files[file].bytes
        length = 8 + int.from_bytes(self.folder.read_range(self.manifest, file, 0, min(8, size)), "little")
        if not 8 < length <= min(size, MOST_HEADER_BYTES):
            raise ValueError(f"{file} is not a safetensors file")
        return bytes(self.folder.read_range(self.manifest, file, 0, length))


def newest_intact(
    lineage: Lineage,
    history: list[Commit],
    check: Callable[[SavedState], None],
    warn: Callable[[str], None],
    passed_over: Mapping[Commit, str],
    before: int | None = None,
) -> SavedState | None:
    """The newest commit of the history that can be read (as far as SavedState checks it); None at the start of a run.

    `check` sees it and raises if this process must not resume from it. `passed_over`: commits found damaged before.
    `before`: images from which on the steps were bad; later commits do not count, nor those between skipped steps.

    Raises TrainingError if there are commits and none can be read, or if they are gone.
    """
    tried = []
    for commit in history:
        if before is not None and commit.images >= before:
            continue
        try:
            if commit in passed_over:
                raise DamagedError(passed_over[commit])
            saved = SavedState(lineage.folder(commit))
        except TrainingError as error:
            if commit not in passed_over:
                warn(f"{error}; going back to the commit before")
            tried.append(commit.name)
            continue
        if before is not None and not saved.sections["progress"].get("healthy", True):
            continue
        check(saved)
        return saved
    if tried:
        names = sorted({*tried, *(commit.name for commit in passed_over)}, reverse=True)
        raise TrainingError(f"{lineage.run.url}: none of the checkpoints {', '.join(names)} can be read")
    attempts = lineage.attempts()
    begun = attempts[max(attempts)].start if attempts else lineage.commits()
    if not history and begun:
        gone = "all checkpoints are missing" if attempts else "the attempt records are missing"
        raise TrainingError(f"{lineage.run.url}: the run has begun, but {gone}; use another run folder (run=...)")
    return None
