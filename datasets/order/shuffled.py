"""The order of one set in training: a pure function of the index, the seed, the number of streams C and the window W.

Position p = 0, 1, 2, ... of the whole job has an epoch, a shard and an index in the shard. Ranks, loader processes and
restarts do not matter, so the state of the data is one integer, the number of images seen. Each epoch permutes the
shards, or pieces of them (`datasets.order.versions`), lays them end to end, cuts that line into C spans, one per
stream, and permutes inside windows of W images of a span. The stream of position p is p mod C
for the whole job.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from datasets.errors import DataError
from datasets.order.order import Integers, Located, Places, Range, Window
from datasets.order.versions import NEWEST, version

_EPOCHS_KEPT = 3


class _Epoch(NamedTuple):
    firsts: Integers  # [P] the first image of each piece, in the order of the shards
    bounds: Integers  # [P + 1] where each piece begins on the line of M images
    before: Integers  # [C] positions of each stream in earlier epochs
    lengths: Integers  # [C] positions of each stream in this epoch
    starts: Integers  # [C] where each stream's span begins on the line


class ShuffledOrder:
    """The order of one set. `counts`, int64 [S], are the images of each shard; M is their sum.

    O(S) memory, O(S) time for the first position of an epoch, O(log S) for every other one of a stream in turn. Raises
    `DataError` if there are no images.
    """

    def __init__(self, counts: Integers, seed: int, streams: int, window: int, order_version: int = NEWEST):
        self._bounds = np.zeros(len(counts) + 1, dtype=np.int64)  # where each shard begins in the set
        np.cumsum(counts, out=self._bounds[1:])
        self.images = int(self._bounds[-1])
        if self.images == 0:
            raise DataError("the data set holds no images")
        if streams < 1 or window < 1:
            raise DataError(f"data.streams and data.window must be at least 1, not {streams} and {window}")
        self.shards, self.streams, self.window, self.order_version = len(counts), streams, window, order_version
        # Windows of different streams begin at different steps: their requests are spread over time.
        self._stagger = np.arange(streams, dtype=np.int64) * window // streams
        self._version = version(order_version, self._bounds, seed, streams, window)
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
            piece = np.searchsorted(epoch.bounds, line, side="right") - 1
            image = epoch.firsts[piece] + line - epoch.bounds[piece]
            number_of_shard = np.searchsorted(self._bounds, image, side="right") - 1
            shard[here], index[here] = number_of_shard, image - self._bounds[number_of_shard]
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
            number[here] = w
            slot[here] = self._version.slots(e, c, w, stop - start, ordinal - start)
        return Places(np.zeros_like(positions), epoch, stream, number, slot)

    def ranges(self, window: Window) -> list[Range]:
        """The samples of a window: slots 0, 1, ... are the samples of these ranges in turn."""
        epoch = self._epoch(window.epoch)
        first, last = self._limits(epoch, np.array([window.stream]), np.array([window.number]))
        begin, end = (int(epoch.starts[window.stream] + edge[0]) for edge in (first, last))
        ranges = []
        piece = int(np.searchsorted(epoch.bounds, begin, side="right")) - 1
        while begin < end:
            stop = min(int(epoch.bounds[piece + 1]), end)
            if stop > begin:
                image = int(epoch.firsts[piece] + begin - epoch.bounds[piece])
                shard = int(np.searchsorted(self._bounds, image, side="right")) - 1
                index = image - int(self._bounds[shard])
                ranges.append(Range(shard, index, index + stop - begin))
                begin = stop
            piece += 1
        return ranges

    def following(self, window: Window) -> Window:
        """The window that the stream reads next."""
        epoch, number = window.epoch, window.number + 1
        while number >= self._windows(epoch, window.stream):
            epoch, number = epoch + 1, 0
        return Window(window.source, epoch, window.stream, number)

    def times(self, epoch: int, images: Integers) -> NDArray[np.float64]:
        """When images of the set come in an epoch, from 0 (first) to 1 (last), float64 [n]: the middle of their window.

        `images`, int64 [n], are numbered in the order of the shards. O(P log P) for P pieces.
        """
        line = self._epoch(epoch)
        pieces = np.flatnonzero(np.diff(line.bounds))
        pieces = pieces[np.argsort(line.firsts[pieces])]
        piece = pieces[np.searchsorted(line.firsts[pieces], images, side="right") - 1]
        place = line.bounds[piece] + images - line.firsts[piece]
        stream = np.searchsorted(line.starts, place, side="right") - 1
        number = (place - line.starts[stream] + self._stagger[stream]) // self.window
        start, stop = self._limits(line, stream, number)
        middle: NDArray[np.float64] = (start + stop) / (2 * line.lengths[stream])
        return middle

    def _windows(self, epoch: int, stream: int) -> int:
        """The number of windows of a stream in an epoch."""
        length = int(self._epoch(epoch).lengths[stream])
        return -(-(length + int(self._stagger[stream])) // self.window) if length else 0

    def _limits(self, epoch: _Epoch, stream: Integers, number: Integers) -> tuple[Integers, Integers]:
        """Where windows begin and end in their spans, int64 [n] each."""
        edge = number * self.window - self._stagger[stream]
        return np.maximum(edge, 0), np.minimum(edge + self.window, epoch.lengths[stream])

    def _epoch(self, number: int) -> _Epoch:
        epoch = self._epochs.get(number)
        if epoch is None:
            self._epochs[number] = epoch = self._begin(number)
            if len(self._epochs) > _EPOCHS_KEPT:
                self._epochs.popitem(last=False)
        return epoch

    def _begin(self, number: int) -> _Epoch:
        C, M = self.streams, self.images
        c = np.arange(C, dtype=np.int64)
        before, after = ((edge - c + C - 1) // C for edge in (number * M, (number + 1) * M))
        lengths = after - before
        return _Epoch(*self._version.line(number), before, lengths, np.cumsum(lengths) - lengths)


def _distinct(numbers: Integers) -> Sequence[int]:
    """The distinct values of an array; np.unique is slow for the usual case, one value."""
    if not numbers.size:
        return []
    low, high = int(numbers.min()), int(numbers.max())
    if low == high:
        return [low]
    values: list[int] = np.unique(numbers).tolist()
    return values
