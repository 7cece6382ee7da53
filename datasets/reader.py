"""The hot path: the images at positions of an order, read window by window and decoded.

A window is one range request for each shard it touches; the next window of a stream is read ahead by a thread while
the present one is decoded.
"""

from __future__ import annotations

from bisect import bisect_right
from concurrent.futures import Future
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from datasets.background import Background
from datasets.cache import DecodedSet
from datasets.decode import Pixels, decode_image, decode_label
from datasets.errors import DataError
from datasets.index import Index
from datasets.members import EncodedRange, MemberReader
from datasets.order import Integers, Plan, Window

_THREADS = 4  # requests in flight


class HeldWindow(NamedTuple):
    """A window in memory: slot s is row s - firsts[i] of part i, the last with firsts[i] <= s."""

    window: Window
    parts: list[EncodedRange]
    firsts: list[int]


class Reader:
    """Decodes the images at given positions of an order. Not for use by several threads at once.

    Raises `DataError` naming shard and key for whatever is not an image of the index's format.
    """

    def __init__(self, index: Index, order: Plan, cache: DecodedSet | None = None):
        self.index = index
        self.order = order
        self.cache = cache
        self.members = MemberReader(index)
        self._format = index.format
        self._held: dict[tuple[int, int], HeldWindow] = {}
        self._ahead: dict[tuple[int, int], tuple[Window, Future[HeldWindow]]] = {}
        self._background = Background(_THREADS)

    def close(self) -> None:
        """Give up what is being read ahead."""
        self._background.close()
        self._held.clear()
        self._ahead.clear()

    def read(self, positions: Integers, images: Pixels, labels: Integers) -> None:
        """Decode the images at `positions` [n] into `images`, uint8 [n, H, W, C], and `labels`, int64 [n]."""
        if self.cache is None:
            self._decode(positions, images, labels, np.arange(len(positions)))
            return
        rows = self.cache.rows(self.order.locate(positions))
        missing = ~self.cache.filled[rows]
        if missing.any():
            self._decode(positions[missing], self.cache.images, self.cache.labels, rows[missing])
            self.cache.filled[rows[missing]] = True
        np.take(self.cache.images, rows, axis=0, out=images)
        np.take(self.cache.labels, rows, out=labels)

    def _decode(self, positions: Integers, images: Pixels, labels: Integers, rows: NDArray[np.int64]) -> None:
        places = self.order.places(positions)
        windows = zip(*(column.tolist() for column in places[:4]), strict=True)
        for row, window, slot in zip(rows.tolist(), windows, places.slot.tolist(), strict=True):
            labels[row] = self._sample(self._hold(Window(*window)), slot, images[row])

    def _sample(self, held: HeldWindow, slot: int, image: Pixels) -> int:
        """Decode the sample in a slot of a window into `image`; its label (0 in a set without classes)."""
        part = bisect_right(held.firsts, slot) - 1
        source, row = held.parts[part], slot - held.firsts[part]
        try:
            data, extension = self.members.image(source, row)
            image[...] = decode_image(data, extension, self._format)
            return self._label(source, row)
        except DataError as error:
            shard, key = self.members.where(source, row)
            raise DataError(f"{self.index.url}/{shard}: sample {key!r}: {error}") from error

    def _label(self, source: EncodedRange, row: int) -> int:
        if not self._format.classes:
            return 0
        data = self.members.label(source, row)
        if data is None:
            raise DataError(f"has no .cls member, but the set has {self._format.classes} classes")
        return decode_label(data, self._format.classes)

    def _hold(self, window: Window) -> HeldWindow:
        stream = (window.source, window.stream)
        held = self._held.get(stream)
        if held is not None and held.window == window:
            return held
        self._held.pop(stream, None)  # before the next is there: the bound on memory counts two windows a stream
        ahead, future = self._ahead.pop(stream, (None, None))
        held = future.result() if future is not None and ahead == window else self._load(window)
        self._held[stream] = held
        self._read_ahead(stream, self.order.following(window))
        return held

    def _read_ahead(self, stream: tuple[int, int], window: Window | None) -> None:
        if window is not None and not (self.cache and self.cache.holds(self.order.ranges(window))):
            self._ahead[stream] = (window, self._background.submit(self._load, window))

    def _load(self, window: Window) -> HeldWindow:
        ranges = self.order.ranges(window)
        sizes = [part.stop - part.start for part in ranges]
        firsts = [sum(sizes[:i]) for i in range(len(sizes))]
        return HeldWindow(window, [self.members.read(part) for part in ranges], firsts)


def memory_needed(index: Index, streams: int, window: int) -> int:
    """The encoded bytes that a reader of so many streams holds at most, the windows read ahead included.

    Of the shard whose images are the largest on average, and of no more than the whole set.
    """
    images = min(2 * streams * window, index.images)
    return int(images * index.bytes_per_image)
