"""The order of one set in training: a pure function of the index, the seed, the number of streams C and the window W.

Position p = 0, 1, 2, ... of the whole job has an epoch, a shard and an index in the shard. Ranks, loader processes and
restarts do not matter, so the state of the data is one integer, the number of images seen. Each epoch permutes the
shards, lays them end to end, cuts that line of M images into C spans, one per stream, and permutes inside windows of W
images of a span. The stream of position p is p mod C for the whole job.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from datasets.errors import DataError
from datasets.hashing import derive, key_of, permute
from datasets.order.order import Integers, Located, Places, Range, Window

_CHUNK = 1 << 16  # shards permuted at a time: bounds the temporary memory of a large set
_EPOCHS_KEPT = 3


class _Epoch(NamedTuple):
    shards: Integers  # [S] the shards in this epoch's order
    bounds: Integers  # [S + 1] where each begins on the line of M images
    before: Integers  # [C] positions of each stream in earlier epochs
    lengths: Integers  # [C] positions of each stream in this epoch
    starts: Integers  # [C] where each stream's span begins on the line


class ShuffledOrder:
    """The order of one set. `counts`, int64 [S], are the images of each shard; M is their sum.

    O(S) memory, O(S) time for the first position of an epoch, O(log S) for every other one. Raises `DataError` if
    there are no images.
    """

    def __init__(self, counts: Integers, seed: int, streams: int, window: int):
        self.counts = np.ascontiguousarray(counts, dtype=np.int64)
        self.images = int(self.counts.sum())
        if self.images == 0:
            raise DataError("the data set holds no images")
        if streams < 1 or window < 1:
            raise DataError(f"data.streams and data.window must be at least 1, not {streams} and {window}")
        self.streams = streams
        self.window = window
        # Windows of different streams begin at different steps: their requests are spread over time.
        self._stagger = np.arange(streams, dtype=np.int64) * window // streams
        self._shard_key = key_of(seed, "shards")
        self._window_key = key_of(seed, "windows")
        self._epochs: OrderedDict[int, _Epoch] = OrderedDict()

    def locate(self, places: Places) -> Located:
        """The epoch, shard and index in the shard of each place, int64 [n] each."""
        shard, index = np.empty_like(places.slot), np.empty_like(places.slot)
        for number in _distinct(places.epoch):
            here = places.epoch == number
            epoch = self._epoch(number)
            stream = places.stream[here]
            start, _ = self._limits(epoch, stream, places.number[here])
            line = epoch.starts[stream] + start + places.slot[here]
            row = np.searchsorted(epoch.bounds, line, side="right") - 1
            shard[here] = epoch.shards[row]
            index[here] = line - epoch.bounds[row]
        return Located(places.epoch, shard, index)

    def places(self, positions: Integers) -> Places:
        """The window and slot of each position, int64 [n]."""
        positions = np.asarray(positions, dtype=np.int64)
        epoch, stream = positions // self.images, positions % self.streams
        number, slot = np.empty_like(positions), np.empty_like(positions)
        for e in _distinct(epoch):
            here = epoch == e
            c = stream[here]
            state = self._epoch(e)
            ordinal = positions[here] // self.streams - state.before[c]
            w = (ordinal + self._stagger[c]) // self.window
            start, stop = self._limits(state, c, w)
            key = derive(derive(derive(self._window_key, e), c), w)
            number[here] = w
            slot[here] = permute(ordinal - start, stop - start, key)
        return Places(np.zeros_like(positions), epoch, stream, number, slot)

    def ranges(self, window: Window) -> list[Range]:
        """The samples of a window: slots 0, 1, ... are the samples of these ranges in turn."""
        epoch = self._epoch(window.epoch)
        first, last = self._limits(epoch, np.array([window.stream]), np.array([window.number]))
        begin, end = (int(epoch.starts[window.stream] + edge[0]) for edge in (first, last))
        ranges = []
        place = int(np.searchsorted(epoch.bounds, begin, side="right")) - 1
        while begin < end:
            low, high = int(epoch.bounds[place]), min(int(epoch.bounds[place + 1]), end)
            if high > begin:
                ranges.append(Range(int(epoch.shards[place]), begin - low, high - low))
                begin = high
            place += 1
        return ranges

    def following(self, window: Window) -> Window:
        """The window that the stream reads next."""
        epoch, number = window.epoch, window.number + 1
        while number >= self._windows(epoch, window.stream):
            epoch, number = epoch + 1, 0
        return Window(window.source, epoch, window.stream, number)

    def _windows(self, epoch: int, stream: int) -> int:
        """The number of windows of a stream in an epoch."""
        length = int(self._epoch(epoch).lengths[stream])
        return -(-(length + int(self._stagger[stream])) // self.window) if length else 0

    def _limits(self, epoch: _Epoch, stream: Integers, number: Integers) -> tuple[Integers, Integers]:
        """Where windows begin and end in their spans, int64 [n] each."""
        edge = number * self.window - self._stagger[stream]
        return np.maximum(edge, 0), np.minimum(edge + self.window, epoch.lengths[stream])

    def _epoch(self, number: int) -> _Epoch:
        if number not in self._epochs:
            self._epochs[number] = self._begin(number)
            if len(self._epochs) > _EPOCHS_KEPT:
                self._epochs.popitem(last=False)
        return self._epochs[number]

    def _begin(self, number: int) -> _Epoch:
        S, C, M = len(self.counts), self.streams, self.images
        key, size = derive(self._shard_key, number), np.array([S], dtype=np.int64)
        shards = np.empty(S, dtype=np.int64)
        for chunk in range(0, S, _CHUNK):
            x = np.arange(chunk, min(chunk + _CHUNK, S), dtype=np.int64)
            shards[chunk : chunk + _CHUNK] = permute(x, size, key)
        bounds = np.zeros(S + 1, dtype=np.int64)
        np.cumsum(self.counts[shards], out=bounds[1:])
        c = np.arange(C, dtype=np.int64)
        before, after = ((edge - c + C - 1) // C for edge in (number * M, (number + 1) * M))
        lengths = after - before
        return _Epoch(shards, bounds, before, lengths, np.cumsum(lengths) - lengths)


def _distinct(numbers: Integers) -> Sequence[int]:
    """The distinct values of an array; np.unique is slow for the usual case, one value."""
    if not numbers.size:
        return []
    low, high = int(numbers.min()), int(numbers.max())
    if low == high:
        return [low]
    values: list[int] = np.unique(numbers).tolist()
    return values
