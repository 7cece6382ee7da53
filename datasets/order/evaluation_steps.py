"""The steps of an evaluation: every image of a set once, in the order of the shards."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np

from datasets.order.order import ImageOrder, Integers, Located, Places, Range, Window
from datasets.order.steps import Share
from datasets.shards.index import Index

_RUN = 64  # neighbouring images that a limited evaluation takes at a time, so that it reads less


@dataclass(frozen=True)
class EvaluationSteps:
    """A rank has a contiguous part of the images. A position is the image's place in the set.

    All ranks have the same number of steps; towards the end those of some ranks are padding.
    """

    images: int  # M, of the set
    taken: int  # images that are evaluated, spread evenly over the set in runs of neighbours
    batch: int  # images of a step, on each rank
    ranks: int = 1
    rank: int = 0
    readers: int = 1
    reader: int = 0  # takes every `readers`-th step of the rank

    @property
    def first(self) -> int:
        return 0

    @property
    def end(self) -> int:
        return -(-self._part // self.batch)

    @property
    def size(self) -> int:
        return self.batch

    @property
    def max_readers(self) -> int:
        return max(self.end, 1)

    def share(self, step: int) -> Share:
        if step % self.readers != self.reader:
            nothing = np.empty(0, dtype=np.int64)
            return Share(nothing, nothing, slice(self.batch, self.batch))
        n = self._images_of(step)
        rows = np.arange(n, dtype=np.int64)
        return Share(self.position(step, rows), rows, slice(n, self.batch))

    def split(self, readers: int) -> list[Self]:
        return [replace(self, readers=readers, reader=reader) for reader in range(readers)]

    def order(self, index: Index) -> ImageOrder:
        return _SequentialOrder(index.counts, self)

    def position(self, step: int | Integers, row: Integers) -> Integers:
        """The place in the set of the image in a row of a step, int64 [n]."""
        ordinal = self.rank * self._part + step * self.batch + row
        return self._starts[ordinal // self._run] + ordinal % self._run

    def step_and_row(self, positions: Integers) -> tuple[Integers, Integers]:
        """The inverse of `position`, int64 [n] each."""
        run = np.searchsorted(self._starts, positions, side="right") - 1
        ordinal = run * self._run + positions - self._starts[run] - self.rank * self._part
        return ordinal // self.batch, ordinal % self.batch

    def _images_of(self, step: int) -> int:
        """Images of a step of this rank; the other rows are padding."""
        begin = self.rank * self._part
        left = min(begin + self._part, self.taken) - begin - step * self.batch
        return max(0, min(left, self.batch))

    @property
    def _part(self) -> int:
        """Images of a rank."""
        return -(-self.taken // self.ranks)

    @property
    def _run(self) -> int:
        return self.taken if self.taken >= self.images else max(1, min(_RUN, self.taken // _RUN))

    @cached_property
    def _starts(self) -> Integers:
        """Where each run of neighbours begins in the set."""
        runs = -(-self.taken // self._run)
        return np.arange(runs, dtype=np.int64) * (self.images - self._run) // max(runs - 1, 1)


class _SequentialOrder:
    """Images in the order of the shards. A window is what a rank takes in one step."""

    def __init__(self, counts: Integers, steps: EvaluationSteps):
        self._steps = steps
        self._bounds = np.concatenate([[0], np.cumsum(counts)])

    def places(self, positions: Integers) -> Places:
        step, row = self._steps.step_and_row(positions)
        zero = np.zeros_like(positions)
        return Places(zero, zero, zero, step, row)

    def locate(self, places: Places) -> Located:
        positions = self._steps.position(places.number, places.slot)
        shard = np.searchsorted(self._bounds, positions, side="right") - 1
        return Located(places.epoch, shard, positions - self._bounds[shard])

    def ranges(self, window: Window) -> list[Range]:
        _, shard, index = self.locate(self.places(self._steps.share(window.number).positions))
        cuts = np.flatnonzero((np.diff(shard) != 0) | (np.diff(index) != 1)) + 1
        starts, stops = [0, *cuts.tolist()], [*cuts.tolist(), len(shard)]
        return [Range(int(shard[a]), int(index[a]), int(index[b - 1]) + 1) for a, b in zip(starts, stops, strict=True)]

    def following(self, window: Window) -> Window | None:
        number = window.number + self._steps.readers
        more = number < self._steps.end and len(self._steps.share(number).positions) > 0
        return window._replace(number=number) if more else None
