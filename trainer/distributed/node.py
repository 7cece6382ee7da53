"""The ranks of one machine."""

from __future__ import annotations

import os
from typing import NamedTuple

import torch.distributed as dist

from trainer.distributed.ranks import all_gather_object, new_gloo_group, rank, world_size


class Node(NamedTuple):
    """The ranks that run on this rank's machine, in order, and a gloo group of them (None: this rank is alone)."""

    ranks: list[int]
    group: dist.ProcessGroup | None

    @property
    def place(self) -> int:
        """This rank's place among them."""
        return self.ranks.index(rank())


def ranks_per_node(group: dist.ProcessGroup | None = None) -> int:
    """The number of ranks on each machine, where all have as many; else 1. All ranks together."""
    if world_size() == 1:
        return 1
    lengths = {length for _, length in _places(group)}
    return lengths.pop() if len(lengths) == 1 else 1


def this_node(seconds: float, group: dist.ProcessGroup | None) -> Node:
    """The node of this rank; its group's waits end after `seconds`. All ranks together, which `group` joins.

    LOCAL_RANK and LOCAL_WORLD_SIZE are set by torchrun and Ray, whose ranks of a node follow each other. Where they are
    not, or do not fit together, every rank counts as a node of its own.
    """
    alone = Node([rank()], None)
    if world_size() == 1:
        return alone
    mine = alone
    for first, length in _places(group):  # groups are made by all ranks, in one order
        ranks = list(range(first, first + length))
        own = new_gloo_group(seconds, ranks) if length > 1 else None
        if rank() in ranks:
            mine = Node(ranks, own)
    return mine


def _places(group: dist.ProcessGroup | None) -> list[tuple[int, int]]:
    """The first rank and the number of ranks of each machine. All ranks together."""
    local_rank, size = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    nodes: dict[tuple[int, int], list[int]] = {}
    for number, place in enumerate(all_gather_object((rank() - local_rank, size), group)):
        nodes.setdefault(place, []).append(number)
    if any(ranks != list(range(first, first + length)) for (first, length), ranks in nodes.items()):
        return [(number, 1) for number in range(world_size())]
    return list(nodes)
