"""Which positions a reader fetches at each step: of a training run, and of an evaluation."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Generic, Protocol, TypeVar

import numpy as np

from datasets.order.mixture import Mixture
from datasets.order.order import Integers, Located, Order, Places, Plan, Range, Window, deal, step_positions
from datasets.shards.index import Index

_TOGETHER = 2048  # positions whose places are found in one go
_RUN = 64  # neighbouring images that a limited evaluation takes at a time, to read less

Found = TypeVar("Found", Located, Places)


class Schedule(Protocol):
    """The work of a rank, or of one of its loader workers. Small, and can be pickled."""

    @property
    def first(self) -> int:
        """The first step."""

    @property
    def steps(self) -> int | None:
        """One more than the last step; None: there is no end."""

    @property
    def streams(self) -> int:
        """How many streams it reads."""

    @property
    def largest(self) -> int:
        """The images of a step at most."""

    def positions(self, step: int) -> Integers:
        """The positions of a step, ascending: int64 [n]."""

    def split(self, readers: int) -> list[Schedule]:
        """The same work dealt to loader workers."""

    def order(self, index: Index) -> Plan:
        """What the positions mean."""


@dataclass(frozen=True)
class Training:
    """Step k is the positions [kB, (k+1)B) of the job; a rank has those of its streams. Never ends."""

    seed: int
    batch: int  # B, images, over all ranks
    all_streams: int  # C
    window: int  # W, images
    mine: range  # the streams of this reader
    first: int  # step
    weights: tuple[int, ...] = (1,)  # of the sets that are mixed

    @property
    def steps(self) -> int | None:
        return None

    @property
    def streams(self) -> int:
        return len(self.mine)

    @property
    def largest(self) -> int:
        return self.batch // self.all_streams * len(self.mine)

    def positions(self, step: int) -> Integers:
        return step_positions(step, self.batch, self.all_streams, self.mine)

    def split(self, readers: int) -> list[Schedule]:
        parts = [deal(len(self.mine), readers, reader) for reader in range(readers)]
        return [replace(self, mine=self.mine[part.start : part.stop]) for part in parts]

    def order(self, index: Index) -> Plan:
        if len(self.weights) == 1:
            return Order(index.counts, self.seed, self.all_streams, self.window)
        return Mixture(index.counts, index.set_bounds, self.weights, self.seed, self.all_streams, self.window)


@dataclass(frozen=True)
class Evaluation:
    """Every image once, in the order of the shards; a rank has a contiguous part. Position: the place in the set."""

    images: int  # M, of the set
    taken: int  # how many of them, spread evenly over the set in runs of neighbours
    batch: int  # images of this rank in a step
    ranks: int
    rank: int
    readers: int = 1
    reader: int = 0  # takes each `readers`-th step of the rank

    @property
    def first(self) -> int:
        return 0

    @property
    def steps(self) -> int:
        """The same on all ranks."""
        return -(-self._part // self.batch)

    @property
    def streams(self) -> int:
        return 1

    @property
    def largest(self) -> int:
        return self.batch

    def positions(self, step: int) -> Integers:
        if step % self.readers != self.reader:
            return np.empty(0, dtype=np.int64)
        low = min(self.rank * self._part + step * self.batch, self.taken)
        high = min(low + self.batch, (self.rank + 1) * self._part, self.taken)
        ordinals = np.arange(low, max(low, high), dtype=np.int64)
        return self._starts[ordinals // self._run] + ordinals % self._run

    def split(self, readers: int) -> list[Schedule]:
        return [replace(self, readers=readers, reader=reader) for reader in range(readers)]

    def order(self, index: Index) -> Plan:
        return _InSequence(index.counts, self)

    def step_and_slot(self, positions: Integers) -> tuple[Integers, Integers]:
        """The inverse of `positions`."""
        run = np.searchsorted(self._starts, positions, side="right") - 1
        place = run * self._run + positions - self._starts[run] - self.rank * self._part
        return place // self.batch, place % self.batch

    @property
    def _part(self) -> int:
        return -(-self.taken // self.ranks)

    @property
    def _run(self) -> int:
        return self.taken if self.taken >= self.images else max(1, min(_RUN, self.taken // _RUN))

    @cached_property
    def _starts(self) -> Integers:
        """Where each run of neighbours begins in the set."""
        runs = -(-self.taken // self._run)
        return np.arange(runs, dtype=np.int64) * (self.images - self._run) // max(runs - 1, 1)


class Ahead:
    """A plan that finds the places of a schedule's next steps together.

    For a few positions numpy's calls cost more than what they do. Positions of no next step are found by themselves.
    """

    def __init__(self, plan: Plan, schedule: Schedule):
        self.locate = _StepsAhead(plan.locate, schedule)
        self.places = _StepsAhead(plan.places, schedule)
        self.ranges = plan.ranges
        self.following = plan.following


class _StepsAhead(Generic[Found]):
    """`find` for the positions of a schedule's steps, one step after another."""

    def __init__(self, find: Callable[[Integers], Found], schedule: Schedule):
        self._find: Callable[[Integers], Found] = find
        self._schedule = schedule
        self._next = schedule.first  # step that has not been looked for
        self._ready: deque[tuple[Integers, Found]] = deque()

    def __call__(self, positions: Integers) -> Found:
        if not self._ready:
            self._look_ahead(positions)
        if self._ready and np.array_equal(self._ready[0][0], positions):
            return self._ready.popleft()[1]
        return self._find(positions)

    def _look_ahead(self, positions: Integers) -> None:
        steps = max(1, _TOGETHER // max(len(positions), 1))
        if self._schedule.steps is not None:
            steps = min(steps, self._schedule.steps - self._next)
        parts = [self._schedule.positions(self._next + i) for i in range(steps)]
        if not parts or not np.array_equal(parts[0], positions):
            return
        self._next += steps
        found = self._find(np.concatenate(parts))
        cuts = np.cumsum([len(part) for part in parts])[:-1]
        columns = zip(*(np.split(column, cuts) for column in found), strict=True)
        self._ready.extend((part, type(found)(*own)) for part, own in zip(parts, columns, strict=True))


class _InSequence:
    """The images as they lie in the shards. A window is what a rank takes in one step."""

    def __init__(self, counts: Integers, schedule: Evaluation):
        self._schedule = schedule
        self._bounds = np.concatenate([[0], np.cumsum(counts)])

    def locate(self, positions: Integers) -> Located:
        shard = np.searchsorted(self._bounds, positions, side="right") - 1
        return Located(np.zeros_like(positions), shard, positions - self._bounds[shard])

    def places(self, positions: Integers) -> Places:
        step, slot = self._schedule.step_and_slot(positions)
        zero = np.zeros_like(positions)
        return Places(zero, zero, zero, step, slot)

    def ranges(self, window: Window) -> list[Range]:
        _, shard, index = self.locate(self._schedule.positions(window.number))
        cuts = np.flatnonzero((np.diff(shard) != 0) | (np.diff(index) != 1)) + 1
        starts, stops = [0, *cuts.tolist()], [*cuts.tolist(), len(shard)]
        return [Range(int(shard[a]), int(index[a]), int(index[b - 1]) + 1) for a, b in zip(starts, stops, strict=True)]

    def following(self, window: Window) -> Window | None:
        number = window.number + self._schedule.readers
        more = number < self._schedule.steps and len(self._schedule.positions(number)) > 0
        return window._replace(number=number) if more else None
