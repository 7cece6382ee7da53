"""This rank's share of a state, copied to host memory; training continues while it is written from there.

Every rank writes what only it has (its part of a sharded tensor); what all ranks have is distributed by size.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trainer.checkpoints.tensor_files import Layout, Piece, StoredTensor, checksums, file_of, header_of, section_of
from trainer.distributed.ranks import rank, world_size
from trainer.distributed.sharding import copy_of, is_sharded, local_part

State = dict[str, dict[str, Any]]  # by section: each is all tensors, or all JSON


class Placed(NamedTuple):
    """A tensor (or this rank's part of it) in host memory, and its place in the whole tensor."""

    value: Tensor  # contiguous
    begin: tuple[int, ...]
    shape: tuple[int, ...]  # of the whole tensor


class RankShare(NamedTuple):
    """What one rank writes of a state."""

    files: dict[str, dict[str, Placed]]  # safetensors files: tensors by name
    texts: dict[str, bytes]  # JSON files: content

    def layout(self) -> Layout:
        """Where the tensors of this share are stored, and their checksums."""
        layout: Layout = {}
        for file, tensors in self.files.items():
            _, starts = header_of({name: placed.value for name, placed in tensors.items()})
            for name, (value, begin, shape) in tensors.items():
                piece = Piece(file, begin, tuple(value.shape), starts[name], checksums(value))
                layout.setdefault(section_of(file), {})[name] = StoredTensor(value.dtype, shape, (piece,))
        return layout


class HostCopy:
    """One copy of this rank's share in host memory, pinned if it comes from a GPU; its buffers are reused."""

    def __init__(self) -> None:
        self.buffers: dict[tuple[str, str], Tensor] = {}

    def take(self, state: State) -> RankShare:
        """Copy this rank's share. The state may change as soon as this returns."""
        mine, ranks = rank(), world_size()
        share, sharded = RankShare({}, {}), 0
        writers = _writers(state, ranks)
        for section, content in state.items():
            if not is_tensors(content):
                if mine == 0:
                    share.texts[f"{section}.json"] = json.dumps(content, indent=1).encode()
                continue
            file = file_of(section, mine, ranks)
            for name, value in content.items():
                if is_sharded(value):
                    part, begin = local_part(value)
                    mine_is, copies = copy_of(value)
                    sharded += 1
                    if sharded % copies != mine_is or (part.numel() == 0 and value.numel() > 0):
                        continue  # another copy of the state writes it, or there is nothing to write
                elif writers[section, name] == mine:
                    part, begin = value, [0] * value.ndim
                else:
                    continue
                placed = Placed(self._copied((section, name), part), tuple(begin), tuple(value.shape))
                share.files.setdefault(file, {})[name] = placed
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


def is_tensors(content: dict[str, Any]) -> bool:
    """Whether a section consists of tensors."""
    return bool(content) and all(isinstance(value, Tensor) for value in content.values())


def _writers(state: State, ranks: int) -> dict[tuple[str, str], int]:
    """Which rank writes each tensor that all have: the largest first, each by the rank with the fewest bytes so far."""
    replicated = [
        (-value.nbytes, section, name)
        for section, content in state.items()
        if is_tensors(content)
        for name, value in content.items()
        if not is_sharded(value)
    ]
    load, writers = [0] * ranks, {}
    for size, section, name in sorted(replicated):
        least = load.index(min(load))
        load[least] -= size
        writers[section, name] = least
    return writers
