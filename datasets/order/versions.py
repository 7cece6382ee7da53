"""The random parts of the order of a set, for each version of the order. A run keeps the version it was started with.

Version 1 permutes whole shards, by Feistel networks. With few shards an image has nearly the same place in every epoch.
Version 2 permutes about a thousand pieces of the line of all shards, or more, by fair permutations; each epoch cuts the
line elsewhere. Measured for 50,000 images, 64 streams and windows of 256 (tests/benchmarks/shuffle.py): the correlation
of an image's time in one epoch with its time in the next is 0.80 in version 1 with 8 shards, in version 2 within +-0.05
with any number of shards; a window is read in 5 ranges. From 260,000 images on, pieces are larger than windows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np

from datasets.errors import DataError
from datasets.hashing import MOST_SORTED, Key, derive, feistel, key_of, permutation, permutations, permute
from datasets.order.order import Integers

NEWEST = 2
"""The version of new runs."""

_CHUNK = 1 << 16  # shards permuted at a time: bounds the temporary memory of a large set
_PIECES = 1024  # correlations between epochs have a standard deviation of 1 / sqrt(pieces)
_PIECES_OF_A_WINDOW = 8  # at most, on average: each is a request


class Line(NamedTuple):
    """The images of a set laid end to end in the order of an epoch, in pieces; none crosses a shard's end."""

    firsts: Integers  # [P] each piece's first image, in the order of the shards
    bounds: Integers  # [P + 1] where each piece begins on this line


class Version(Protocol):
    """The random parts of the order of one set."""

    def line(self, epoch: int) -> Line:
        """The order in which an epoch's streams pass the images."""

    def slots(self, epoch: int, stream: Integers, window: Integers, size: Integers, place: Integers) -> Integers:
        """The slot of the image that comes at each place of a window of `size` images of a stream, int64 [n]."""


class _WholeShards:
    """Version 1."""

    def __init__(self, starts: Integers, seed: int, streams: int, window: int):
        self._starts = starts
        self._shard_key, self._window_key = key_of(seed, "shards"), key_of(seed, "windows")

    def line(self, epoch: int) -> Line:
        S = len(self._starts) - 1
        key, size = derive(self._shard_key, epoch), np.array([S])
        order = np.empty(S, dtype=np.int64)
        for chunk in range(0, S, _CHUNK):
            order[chunk : chunk + _CHUNK] = feistel(np.arange(chunk, min(chunk + _CHUNK, S)), size, key)
        return _in_order(self._starts, order)

    def slots(self, epoch: int, stream: Integers, window: Integers, size: Integers, place: Integers) -> Integers:
        return feistel(place, size, derive(derive(derive(self._window_key, epoch), stream), window))


class _Pieces:
    """Version 2. Keeps the permutations of the streams' current windows."""

    def __init__(self, starts: Integers, seed: int, streams: int, window: int):
        self._starts = starts
        self._piece = max(-(-int(starts[-1]) // _PIECES), -(-window // _PIECES_OF_A_WINDOW))  # images
        self._cut_key, self._piece_key = key_of(seed, "cuts"), key_of(seed, "pieces")
        self._window_key = key_of(seed, "windows of version 2")
        self._slots = np.empty((streams, window), dtype=np.uint16) if window <= MOST_SORTED else None
        self._windows = np.full((streams, 2), -1, dtype=np.int64)  # (epoch, window) of each row of `_slots`

    def line(self, epoch: int) -> Line:
        cut = int(derive(self._cut_key, epoch)[0] % np.uint64(self._piece))
        cuts = np.arange(cut, self._starts[-1], self._piece)
        bounds = np.insert(self._starts, np.searchsorted(self._starts, cuts), cuts)
        return _in_order(bounds, permutation(len(bounds) - 1, derive(self._piece_key, epoch)))

    def slots(self, epoch: int, stream: Integers, window: Integers, size: Integers, place: Integers) -> Integers:
        if self._slots is None:
            return permute(place, size, self._key(epoch, stream, window))
        slots = self._slots[stream, place].astype(np.int64)
        new = np.flatnonzero((self._windows[stream, 0] != epoch) | (self._windows[stream, 1] != window))
        _, first, row = np.unique(window[new] * len(self._slots) + stream[new], return_index=True, return_inverse=True)
        at_once = max(1, _CHUNK // self._slots.shape[1])
        for begin in range(0, len(first), at_once):
            one = new[first[begin : begin + at_once]]  # row of each distinct window
            c, w = stream[one], window[one]
            table = permutations(size[one], self._key(epoch, c, w))
            here = (row >= begin) & (row < begin + at_once)
            slots[new[here]] = table[row[here] - begin, place[new[here]]]
            self._slots[c, : table.shape[1]] = table  # of several windows of a stream, the last one stays
            self._windows[c, 0], self._windows[c, 1] = epoch, w
        return slots

    def _key(self, epoch: int, stream: Integers, window: Integers) -> Key:
        return derive(derive(derive(self._window_key, epoch), stream), window)


def _in_order(bounds: Integers, order: Integers) -> Line:
    """The pieces between `bounds` in the order of their numbers in `order`."""
    ends = np.zeros(len(order) + 1, dtype=np.int64)
    np.cumsum(np.diff(bounds)[order], out=ends[1:])
    return Line(bounds[order], ends)


_VERSIONS: dict[int, Callable[[Integers, int, int, int], Version]] = {1: _WholeShards, 2: _Pieces}


def version(number: int, starts: Integers, seed: int, streams: int, window: int) -> Version:
    """A version of the order of a set whose shards begin at `starts`, int64 [S + 1]: the last entry is the set's end.

    Raises `DataError` if this release does not know the version.
    """
    if number not in _VERSIONS:
        raise DataError(f"version {number} of the order of the images is not known here; the newest is {NEWEST}")
    return _VERSIONS[number](starts, seed, streams, window)
