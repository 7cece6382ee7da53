"""Several sets mixed by integer weights: a pure function of the position, exactly once within each set.

A round is C consecutive positions, one of each stream. A pattern of length S, the sum of the weights, gives the set of
each round; within its set a round has number (r div S) x weight + its place in the pattern. Each set has an order of
its own with the same C, so that streams stay with their readers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from datasets.errors import DataError
from datasets.hashing import feistel, key_of, permutation
from datasets.order.order import Integers, Located, Places, Range, Window
from datasets.order.shuffled import ShuffledOrder
from datasets.order.versions import NEWEST

_MAX_WEIGHTS = 1 << 20  # sum of weights


class MixedOrder:
    """The order of several sets. Set i has the shards set_bounds[i] to set_bounds[i+1].

    `counts`, int64 [S], are the images of each shard. Epochs are counted for each set.
    """

    def __init__(
        self,
        counts: Integers,
        set_bounds: Integers,
        weights: Sequence[int],
        seed: int,
        streams: int,
        window: int,
        order_version: int = NEWEST,
    ):
        if sum(weights) > _MAX_WEIGHTS:
            raise DataError(f"the weights of the mixture add up to {sum(weights)}, more than {_MAX_WEIGHTS}")
        self.streams = streams
        self._bounds = set_bounds
        self._weights = np.array(weights, dtype=np.int64)
        self.orders = [
            ShuffledOrder(counts[low:high], _seed_of(seed, i), streams, window, order_version)
            for i, (low, high) in enumerate(zip(set_bounds[:-1].tolist(), set_bounds[1:].tolist(), strict=True))
        ]
        self._pattern = _pattern(weights, seed, order_version)
        self._place = _place_among_equals(self._pattern)

    def places(self, positions: Integers) -> Places:
        """The window and slot of each position, int64 [n]."""
        source, inner = self.inner(positions)
        columns = [np.empty_like(inner) for _ in Places._fields]
        for i in np.unique(source).tolist():
            here = source == i
            for column, values in zip(columns, self.orders[i].places(inner[here]), strict=True):
                column[here] = values
        return Places(source, *columns[1:])

    def locate(self, places: Places) -> Located:
        """The epoch, shard and index in the shard of each place, int64 [n] each."""
        located = Located(*(np.empty_like(places.slot) for _ in Located._fields))
        for i in np.unique(places.source).tolist():
            here = places.source == i
            found = self.orders[i].locate(Places(*(column[here] for column in places)))
            for column, values in zip(located, found, strict=True):
                column[here] = values
            located.shard[here] += self._bounds[i]
        return located

    def ranges(self, window: Window) -> list[Range]:
        """The samples of a window: slots 0, 1, ... are the samples of these ranges in turn."""
        first = int(self._bounds[window.source])
        return [Range(first + shard, start, stop) for shard, start, stop in self.orders[window.source].ranges(window)]

    def following(self, window: Window) -> Window:
        """The window that the stream reads next in the same set."""
        return self.orders[window.source].following(window)

    def inner(self, positions: Integers) -> tuple[Integers, Integers]:
        """The set of each position, and the position in the order of that set: int64 [n] each."""
        positions = np.asarray(positions, dtype=np.int64)
        rounds, stream = positions // self.streams, positions % self.streams
        cycle, place = rounds // len(self._pattern), rounds % len(self._pattern)
        source = self._pattern[place]
        return source, (cycle * self._weights[source] + self._place[place]) * self.streams + stream


def _seed_of(seed: int, i: int) -> int:
    """A seed for set i; set 0 has the job's own, so that a mixture of one set has the order of that set."""
    return seed if i == 0 else int(key_of(seed, f"set {i}")[0])


def _pattern(weights: Sequence[int], seed: int, order_version: int) -> Integers:
    """The set of each round of a cycle, int64 [S]: each set `weight` times, in a keyed permutation."""
    sets, key = np.repeat(np.arange(len(weights), dtype=np.int64), weights), key_of(seed, "mixture")
    if order_version == 1:
        return sets[feistel(np.arange(len(sets)), np.array([len(sets)]), key)]
    return sets[permutation(len(sets), key)]


def _place_among_equals(pattern: Integers) -> Integers:
    """The number of earlier rounds of the same set, for each round of the pattern."""
    place = np.empty_like(pattern)
    for i in np.unique(pattern).tolist():
        here = pattern == i
        place[here] = np.arange(int(here.sum()))
    return place
