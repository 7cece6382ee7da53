"""Several sets mixed by integer weights, still a pure function of the position and exactly once within each set.

A round is C consecutive positions, one of each stream. A pattern of length S, the sum of the weights, says which set
round r takes its images from; inside its set the round counts (r div S) x weight + its place in the pattern. Each set
has an order of its own with the same C, so that streams stay with their readers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from datasets.errors import DataError
from datasets.order.hashing import key_of, permute
from datasets.order.order import Integers, Located, Order, Places, Range, Window

_LONGEST = 1 << 20  # sum of weights


class Mixture:
    """The order of sets whose shards are numbered through: set i has the shards from set_bounds[i] to set_bounds[i+1].

    `counts` int64 [S] are the images of each shard. The epoch of a position is that of its set.
    """

    def __init__(
        self, counts: Integers, set_bounds: Integers, weights: Sequence[int], seed: int, streams: int, window: int
    ):
        if sum(weights) > _LONGEST:
            raise DataError(f"the weights of the mixture add up to {sum(weights)}, more than {_LONGEST}")
        self.streams = streams
        self._bounds = set_bounds
        self._weights = np.array(weights, dtype=np.int64)
        self.orders = [
            Order(counts[low:high], _own(seed, i), streams, window)
            for i, (low, high) in enumerate(zip(set_bounds[:-1].tolist(), set_bounds[1:].tolist(), strict=True))
        ]
        self._pattern = _pattern(weights, seed)
        self._place = _place_among_equals(self._pattern)

    def locate(self, positions: Integers) -> Located:
        """Epoch, shard and index in the shard of each position, int64 [n] each."""
        source, inner = self.inner(positions)
        epoch, shard, index = (np.empty_like(inner) for _ in range(3))
        for i in np.unique(source).tolist():
            here = source == i
            epoch[here], shard[here], index[here] = self.orders[i].locate(inner[here])
            shard[here] += self._bounds[i]
        return Located(epoch, shard, index)

    def places(self, positions: Integers) -> Places:
        """The windows of the positions, and their slots there."""
        source, inner = self.inner(positions)
        columns = [np.empty_like(inner) for _ in Places._fields]
        for i in np.unique(source).tolist():
            here = source == i
            for column, values in zip(columns, self.orders[i].places(inner[here]), strict=True):
                column[here] = values
        return Places(source, *columns[1:])

    def ranges(self, window: Window) -> list[Range]:
        """What a window holds: its slots are the images of these ranges in turn."""
        first = int(self._bounds[window.source])
        return [Range(first + shard, start, stop) for shard, start, stop in self.orders[window.source].ranges(window)]

    def following(self, window: Window) -> Window:
        """The window that the stream reads after this one in the same set."""
        return self.orders[window.source].following(window)

    def inner(self, positions: Integers) -> tuple[Integers, Integers]:
        """The set of each position, and its position in the order of that set."""
        positions = np.asarray(positions, dtype=np.int64)
        rounds, stream = positions // self.streams, positions % self.streams
        cycle, place = rounds // len(self._pattern), rounds % len(self._pattern)
        source = self._pattern[place]
        return source, (cycle * self._weights[source] + self._place[place]) * self.streams + stream


def _own(seed: int, i: int) -> int:
    """A seed for set i; that of the job for the first, so that a mixture of one is the order of that set."""
    return seed if i == 0 else int(key_of(seed, f"set {i}")[0])


def _pattern(weights: Sequence[int], seed: int) -> Integers:
    """Which set each round of a cycle takes, int64 [S]: each as often as it weighs, shuffled by a key."""
    sets = np.repeat(np.arange(len(weights), dtype=np.int64), weights)
    return sets[permute(np.arange(len(sets)), np.array([len(sets)]), key_of(seed, "mixture"))]


def _place_among_equals(pattern: Integers) -> Integers:
    """How many rounds of the same set come before each round of the pattern."""
    place = np.empty_like(pattern)
    for i in np.unique(pattern).tolist():
        here = pattern == i
        place[here] = np.arange(int(here.sum()))
    return place
