"""This rank's share of a run's state: copied to host memory once, then streamed from there into files.

Every rank writes what only it has (its part of a sharded tensor); what all of them have is dealt out by size.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trainer.distributed.ranks import rank, world_size
from trainer.distributed.sharding import is_sharded, local_part

State = dict[str, dict[str, Any]]  # a section is all tensors, or all JSON

PIECE = 8 << 20  # bytes of a file that are handed on at once
LAYOUT = "layout.json"  # of tensors that lie in several files

_NAMES = {  # of the safetensors format
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
}


class Share(NamedTuple):
    """What one rank writes of a state."""

    tensors: dict[str, dict[str, Tensor]]  # by file and name
    texts: dict[str, bytes]  # JSON files
    layout: dict[str, dict[str, Any]]  # by section and name: the whole's "shape", and the "pieces" {file: offset}


class Stage:
    """One copy of this rank's share in host memory, pinned where it comes from a GPU; its buffers are used again."""

    def __init__(self) -> None:
        self.buffers: dict[tuple[str, str], Tensor] = {}

    def take(self, state: State) -> Share:
        """Copy this rank's share. When it returns, the state may change."""
        mine, ranks = rank(), world_size()
        share = Share({}, {}, {})
        writers = _dealt(state, ranks)
        for section, content in state.items():
            if not _is_tensors(content):
                if mine == 0:
                    share.texts[f"{section}.json"] = json.dumps(content, indent=1).encode()
                continue
            file = f"{section}.safetensors" if ranks == 1 else f"{section}-{mine}.safetensors"
            for name, value in content.items():
                if is_sharded(value):
                    part, offset = local_part(value)
                    if part.numel() == 0 and value.numel() > 0:
                        continue
                    whole = {"shape": list(value.shape), "pieces": {file: offset}}
                    share.layout.setdefault(section, {})[name] = whole
                elif writers[section, name] == mine:
                    part = value
                else:
                    continue
                share.tensors.setdefault(file, {})[name] = self._copied((section, name), part)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return share

    def _copied(self, key: tuple[str, str], value: Tensor) -> Tensor:
        value = value.detach()
        buffer = self.buffers.get(key)
        if buffer is None or buffer.shape != value.shape or buffer.dtype != value.dtype:
            buffer = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
            self.buffers[key] = buffer
        return buffer.copy_(value, non_blocking=True)


def stream(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """A .safetensors file of contiguous tensors in host memory, piece by piece; nothing is copied."""
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))  # keeps them aligned
    header, end = {}, 0
    for name, value in ordered:
        begin, end = end, end + value.nbytes
        header[name] = {"dtype": _NAMES[value.dtype], "shape": list(value.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for _, value in ordered:
        if value.numel():
            content = memoryview(value.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
            for start in range(0, len(content), PIECE):
                yield content[start : start + PIECE]


def merged(layouts: list[dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """The layouts of all ranks as one."""
    whole: dict[str, dict[str, Any]] = {}
    for layout in layouts:
        for section, content in layout.items():
            for name, entry in content.items():
                kept = whole.setdefault(section, {}).setdefault(name, {"shape": entry["shape"], "pieces": {}})
                kept["pieces"].update(entry["pieces"])
    return whole


class Assembly:
    """A state put together again from the files of any number of ranks, one file in memory at a time."""

    def __init__(self, layout: dict[str, dict[str, Any]]):
        self.layout = layout
        self.state: State = {}
        self.missing: dict[tuple[str, str], int] = {}  # elements of a tensor in several files that have not come

    def add(self, file: str, tensors: dict[str, Tensor]) -> None:
        """Take in the tensors of a file. Raises ValueError if they are not what the layout says."""
        section = file.removesuffix(".safetensors").partition("-")[0]
        into = self.state.setdefault(section, {})
        for name, value in tensors.items():
            entry = self.layout.get(section, {}).get(name)
            if entry is None:
                into[name] = value
                continue
            if name not in into:
                into[name] = torch.empty(entry["shape"], dtype=value.dtype)
                self.missing[section, name] = into[name].numel()
            target = into[name]
            for dimension, begin in enumerate(entry["pieces"][file]):
                target = target.narrow(dimension, begin, value.shape[dimension])
            target.copy_(value)
            self.missing[section, name] -= value.numel()

    def whole(self, only: Collection[str] = ()) -> State:
        """The state, or those sections of it. Raises ValueError if a part has not come."""
        cut = {(section, name) for section, content in self.layout.items() for name in content}
        for section, name in sorted(cut):
            if only and section not in only:
                continue
            if self.missing.get((section, name), 1) != 0:
                raise ValueError(f"a part of {section}/{name} is missing")
        return self.state


def _is_tensors(content: dict[str, Any]) -> bool:
    return bool(content) and all(isinstance(value, Tensor) for value in content.values())


def _dealt(state: State, ranks: int) -> dict[tuple[str, str], int]:
    """Which rank writes each tensor that all have: the largest first, each to the rank that has least to write."""
    whole = [
        (-value.nbytes, section, name)
        for section, content in state.items()
        if _is_tensors(content)
        for name, value in content.items()
        if not is_sharded(value)
    ]
    load, writers = [0] * ranks, {}
    for size, section, name in sorted(whole):
        least = load.index(min(load))
        load[least] -= size
        writers[section, name] = least
    return writers
