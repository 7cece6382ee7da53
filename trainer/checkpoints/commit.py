"""One commit: the folder of a complete checkpoint, and the manifest that makes it complete.

<run>/checkpoints/000000012800-0002/model.safetensors   a file of the checkpoint after 12800 images, by attempt 2
<run>/checkpoints/000000012800-0002/manifest.json       written last: without it there is no commit
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from cluster.storage.errors import MissingError, StorageError, TooLargeError, UnavailableError
from cluster.storage.json_files import MOST_JSON_BYTES, parse_json
from cluster.storage.storage import Storage
from trainer.checkpoints.records import Kind, parse_record
from trainer.errors import DamagedError, TrainingError

MANIFEST = "manifest.json"
FORMAT = 2  # of what is written: layout.json lists every tensor, with a CRC-32 for each CHUNK of its bytes
READABLE = (1, 2)  # 1: layout.json lists only the tensors that are split over files; integrity by whole files

MOST_LAYOUT_BYTES = 1 << 30  # of a JSON file of a checkpoint; layout.json has 8 for each 256 KiB of tensors
_KINDS: dict[str, Kind] = {"progress.json": "progress", "fingerprint.json": "fingerprint"}
_FILE = re.compile(r"[A-Za-z0-9_-]+\.(safetensors|json)")  # no other folder, nothing that would have to be unpickled


class Commit(NamedTuple):
    """Names a complete checkpoint: the state after `images` images, written by attempt number `attempt`."""

    images: int
    attempt: int

    @property
    def name(self) -> str:
        """The name of its folder; sorts by images."""
        return f"{self.images:012d}-{self.attempt:04d}"

    @classmethod
    def named(cls, name: str) -> Commit | None:
        """The commit of a folder's name; None if the name is not a commit's."""
        match = re.fullmatch(r"(\d{12,18})-(\d{4,9})", name, re.ASCII)
        return cls(int(match[1]), int(match[2])) if match else None


class FileDigest(NamedTuple):
    """Expected size and SHA-256 of a checkpoint file."""

    bytes: int
    sha256: str


class Manifest(NamedTuple):
    """The content of manifest.json."""

    format: int
    files: dict[str, FileDigest]


class CommitFolder:
    """Reads and writes the files of one commit."""

    def __init__(self, run: Storage, commit: Commit):
        self.run, self.commit = run, commit
        self.path = f"checkpoints/{commit.name}"
        self.url = f"{run.url}/{self.path}"

    # ---- writing

    def write_file(self, name: str, data: bytes | Callable[[], Iterator[bytes | memoryview]]) -> FileDigest:
        """Write a file, from bytes or from a function that returns its blocks (called again for each retry)."""
        size, digest = 0, hashlib.sha256()

        def blocks() -> Iterator[bytes | memoryview]:
            nonlocal size, digest
            size, digest = 0, hashlib.sha256()
            for block in [data] if isinstance(data, bytes) else data():
                digest.update(block)
                size += len(block)
                yield block

        self.run.write(f"{self.path}/{name}", b"".join(blocks()) if isinstance(data, bytes) else blocks)
        return FileDigest(size, digest.hexdigest())

    def write_manifest(self, files: dict[str, FileDigest]) -> None:
        """Make the commit. All its files must have been written."""
        listed = {name: digest._asdict() for name, digest in sorted(files.items())}
        manifest = {"format": FORMAT, "files": listed}
        self.run.write(f"{self.path}/{MANIFEST}", json.dumps(manifest, indent=1).encode())

    def delete(self) -> None:
        """Remove the commit, its manifest first, so that no incomplete commit is ever visible."""
        self.run.delete(f"{self.path}/{MANIFEST}")
        for entry in list(self.run.list(self.path)):
            self.run.delete(entry.path)
        if local := self.run.local_path(self.path):
            shutil.rmtree(local, ignore_errors=True)

    # ---- reading

    def manifest(self) -> Manifest:
        """The manifest. Raises TrainingError if it cannot be read or lists anything but files of its own folder."""
        where = f"{self.url}/{MANIFEST}"
        try:
            content = parse_record("manifest", self.run.read(f"{self.path}/{MANIFEST}", MOST_JSON_BYTES))
        except (MissingError, TooLargeError, ValueError) as error:
            raise DamagedError(f"{where}: not the manifest of a checkpoint ({error})") from error
        version = content["format"]
        files = {name: FileDigest(listed["bytes"], listed["sha256"]) for name, listed in content["files"].items()}
        if version not in READABLE:
            raise TrainingError(f"{where}: is in format {version!r}, this version reads {READABLE}")
        if strange := [name for name in files if not _FILE.fullmatch(name)]:
            raise TrainingError(f"{where}: lists {strange[0]!r}, which is no file of a checkpoint")
        return Manifest(version, files)

    def read_file(self, manifest: Manifest, name: str) -> bytes:
        """The content of a file. Raises DamagedError if it is not what the manifest says."""
        if name not in manifest.files:
            raise DamagedError(f"{self.url}: incomplete checkpoint: it has no {name}")
        try:
            data = self.run.read(f"{self.path}/{name}", manifest.files[name].bytes)
        except MissingError as error:
            raise DamagedError(f"{self.url}: incomplete checkpoint: {name} is missing") from error
        except TooLargeError as error:
            raise DamagedError(f"{self.url}/{name}: its content is not what the manifest says") from error
        if (len(data), hashlib.sha256(data).hexdigest()) != manifest.files[name]:
            raise DamagedError(f"{self.url}/{name}: its content is not what the manifest says")
        return data

    def read_json(self, manifest: Manifest, name: str) -> Any:
        """The parsed content of a JSON file. Raises DamagedError if it is not what the manifest says."""
        size = manifest.files[name].bytes if name in manifest.files else 0
        if size > MOST_LAYOUT_BYTES:
            raise DamagedError(f"{self.url}/{name}: {size:,} bytes, more than a JSON file of a checkpoint has")
        kind = _KINDS.get(name)
        try:
            data = self.read_file(manifest, name)
            return parse_record(kind, data) if kind else parse_json(data)
        except ValueError as error:
            raise DamagedError(f"{self.url}/{name}: damaged ({error})") from error

    def read_range(self, manifest: Manifest, name: str, start: int, stop: int) -> memoryview:
        """The bytes [start, stop) of a file, unchecked. Raises DamagedError if the file does not have them."""
        path = f"{self.path}/{name}"
        try:
            data = self.run.read_range(path, start, stop)
        except MissingError as error:
            raise DamagedError(f"{self.url}: incomplete checkpoint: {name} is missing") from error
        except UnavailableError:
            raise
        except StorageError as error:
            entry = self.run.stat(path)
            if entry is None or entry.size != manifest.files[name].bytes:
                raise DamagedError(f"{self.url}/{name}: its content is not what the manifest says") from error
            raise
        if len(data) != stop - start:
            raise DamagedError(f"{self.url}/{name}: its content is not what the manifest says")
        return data
