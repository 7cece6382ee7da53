"""What a reader fetches at each step: `TrainingSteps` and `EvaluationSteps` implement `Steps`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol, Self

import numpy as np

from datasets.order.order import ImageOrder, Integers, Places
from datasets.shards.index import Index

_BLOCK = 2048  # positions looked up at once: on a few, numpy's calls cost more than their work


class Share(NamedTuple):
    """A reader's share of one step."""

    positions: Integers  # [n], ascending
    rows: Integers  # [n], in the rank's batch
    padding: slice  # rows of the rank's batch that this reader has to clear


class Steps(Protocol):
    """The steps of a rank, or a loader process's share of them. Small; can be pickled."""

    @property
    def first(self) -> int:
        """The first step."""

    @property
    def end(self) -> int | None:
        """One more than the last step; None: endless."""

    @property
    def size(self) -> int:
        """Rows of the rank's batches, images and padding: the same in all steps and on all ranks."""

    @property
    def readers(self) -> int:
        """The number of loader processes that share the steps."""

    @property
    def max_readers(self) -> int:
        """The most loader processes that can have work at the same time."""

    def share(self, step: int) -> Share:
        """What this reader fetches at a step."""

    def split(self, readers: int) -> list[Self]:
        """The shares of this rank's loader processes."""

    def order(self, index: Index) -> ImageOrder:
        """The order that the positions belong to."""


class Step(NamedTuple):
    """A share whose places have been looked up."""

    share: Share
    places: Places  # [n]


def look_up(steps: Steps, order: ImageOrder, skip: int = 0) -> Iterator[Step]:
    """One step after another, without the first `skip`.

    Blocks of 1, 2, 4, ... steps are looked up at once, up to about `_BLOCK` positions.
    """
    largest, block = max(1, _BLOCK * steps.readers // steps.size), 1
    begin, end = steps.first + skip, steps.end
    while end is None or begin < end:
        stop = begin + block if end is None else min(begin + block, end)
        block = min(2 * block, largest)
        shares = [steps.share(step) for step in range(begin, stop)]
        places = order.places(np.concatenate([share.positions for share in shares]))
        low = 0
        for share in shares:
            high = low + len(share.positions)
            yield Step(share, Places(*(column[low:high] for column in places)))
            low = high
        begin = stop
