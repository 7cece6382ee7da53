"""A small set decoded once: all images and conditions in arrays, filled when they are first needed."""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from datasets.conditions.condition import Arrays, Condition, Sample, zeros
from datasets.order.order import Integers, Located, Range
from datasets.quarantine import Quarantined
from datasets.shards.index import Index


class DecodedSet:
    """The decoded images of a set, uint8 [M, H, W, C], and all values that their conditions may have."""

    def __init__(self, index: Index, conditions: tuple[Condition, ...] = ()):
        self.images = np.empty((index.images, *index.format.shape), dtype=np.uint8)
        self.filled = np.zeros(index.images, dtype=bool)
        self.bad: dict[int, Quarantined] = {}  # by row
        self._first = np.concatenate([[0], np.cumsum(index.counts)])  # row of each shard's first image
        self._conditions = [_Values(condition, index.images) for condition in conditions]

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        return self.images.nbytes + sum(values.nbytes for values in self._conditions)

    def rows(self, located: Located) -> NDArray[np.int64]:
        """The rows of located images."""
        rows: NDArray[np.int64] = self._first[located.shard] + located.index
        return rows

    def holds(self, ranges: list[Range]) -> bool:
        """Whether every image of the ranges has been decoded."""
        starts = [int(self._first[part.shard]) for part in ranges]
        return all(self.filled[s + part.start : s + part.stop].all() for s, part in zip(starts, ranges, strict=True))

    def read_conditions(self, sample: Sample, i: int, row: int) -> None:
        """Keep what a sample has, in a row; raises DataError where it must not be used."""
        for values in self._conditions:
            values.read(sample, row)

    def take_conditions(self, rows: Integers, positions: Integers, arrays: Arrays, to: Integers) -> Counter[str]:
        """Copy the values chosen for `positions` from `rows` to the rows `to` of `arrays`; count those unknown."""
        unknown: Counter[str] = Counter()
        for values in self._conditions:
            unknown += values.take(rows, positions, arrays, to)
        return unknown


class _Values:
    """All values of one condition: [choices, M, ...] for each of its arrays."""

    def __init__(self, condition: Condition, images: int):
        self.condition = condition
        self.arrays = zeros((condition,), condition.choices, images)
        self.unknown: dict[tuple[int, int], str] = {}  # reason by (choice, row)

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values())

    def read(self, sample: Sample, row: int) -> None:
        for choice in range(self.condition.choices):
            of_choice = {name: array[choice] for name, array in self.arrays.items()}
            if reason := self.condition.read(sample, choice, of_choice, row):
                self.unknown[choice, row] = reason

    def take(self, rows: Integers, positions: Integers, arrays: Arrays, to: Integers) -> Counter[str]:
        chosen = self.condition.choose(positions)
        for name, array in self.arrays.items():
            arrays[name][to] = array[chosen, rows]
        if not self.unknown:
            return Counter()
        reasons = (self.unknown.get(pair) for pair in zip(chosen.tolist(), rows.tolist(), strict=True))
        return Counter(f"{self.condition.name}/{reason}" for reason in reasons if reason)
