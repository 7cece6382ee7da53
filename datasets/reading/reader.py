"""The hot path: the images at positions of an order, read window by window and decoded.

A window is one range request for each shard it touches; the next window of a stream is read ahead by a thread while
the present one is decoded. Where windows would not fit into memory, each image is a request of its own.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from concurrent.futures import Future
from itertools import accumulate
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from datasets.errors import DataError
from datasets.order.order import Integers, Plan, Range, Window
from datasets.quarantine import Quarantined
from datasets.reading.background import Background
from datasets.reading.decode import Format, Pixels
from datasets.reading.decoded_set import DecodedSet
from datasets.reading.disk_cache import DiskCache
from datasets.reading.members import EncodedRange, MemberReader
from datasets.reading.transform import Transform
from datasets.shards.index import Index

_THREADS = 4  # requests in flight for windows
_THREADS_OF_MEMBERS = 16  # and for single images


class HeldWindow(NamedTuple):
    """A window in memory: slot s is row s - firsts[i] of part i, the last with firsts[i] <= s."""

    parts: list[EncodedRange]
    firsts: list[int]


class ReaderOptions(NamedTuple):
    """How a reader does its work."""

    quarantine: bool = False  # bad images are reported, not raised
    by_member: bool = False  # a request for each image: slower, in less memory
    disk_cache: tuple[str, int] | None = None  # a folder, and the bytes that it may take


class Reader:
    """Decodes the images at given positions of an order. Not for use by several threads at once.

    Raises `DataError` naming shard and key for whatever is not an image of the index's format, unless such images are
    quarantined.
    """

    def __init__(
        self,
        index: Index,
        order: Plan,
        options: ReaderOptions = ReaderOptions(),  # noqa: B008  (immutable)
        transform: Transform | None = None,
        cache: DecodedSet | None = None,
    ):
        self.index = index
        self.order = order
        self.members = MemberReader(index, DiskCache(*options.disk_cache) if options.disk_cache else None)
        self._format: Format = index.format
        self._options = options
        self._transform = transform
        self._cache = cache
        self._held: dict[tuple[int, int, int, int], HeldWindow] = {}  # by the window
        self._current: dict[tuple[int, int], Window] = {}  # of each (source, stream)
        self._ahead: dict[tuple[int, int], tuple[Window, Future[HeldWindow]]] = {}
        self._background = Background(_THREADS_OF_MEMBERS if options.by_member else _THREADS)

    def close(self) -> None:
        """Give up what is being read ahead."""
        self._background.close()
        self._held.clear()
        self._current.clear()
        self._ahead.clear()

    def read(self, positions: Integers, images: Pixels, labels: Integers) -> list[Quarantined]:
        """Decode the images at `positions` [n] into `images`, uint8 [n, H, W, C], and `labels`, int64 [n].

        Returns what was quarantined among them; there the image is black and the label 0.
        """
        if self._cache is not None:
            return self._read_cached(self._cache, positions, images, labels)
        return self.read_to(np.arange(len(positions)), positions, images, labels)

    def read_to(
        self, rows: NDArray[np.int64], positions: Integers, images: Pixels, labels: Integers
    ) -> list[Quarantined]:
        """As `read`, to `rows` [n] of larger `images` and `labels`, the images being decoded there where they can."""
        return self._decode(positions, images, labels, rows, self._transform)

    def _read_cached(
        self, cache: DecodedSet, positions: Integers, images: Pixels, labels: Integers
    ) -> list[Quarantined]:
        located = self.order.locate(positions)
        rows = cache.rows(located)
        missing = ~cache.filled[rows]
        if missing.any():
            _, first = np.unique(rows[missing], return_index=True)  # a small set comes twice in a batch
            first.sort()
            fresh, asked = rows[missing][first], positions[missing][first]
            bad = self._decode(asked, cache.images, cache.labels, fresh, None)
            cache.bad |= {int(fresh[np.searchsorted(asked, entry.position)]): entry for entry in bad} if bad else {}
            cache.filled[fresh] = True
        if self._transform is None:
            np.take(cache.images, rows, axis=0, out=images)
        else:
            for i, row in enumerate(rows.tolist()):
                images[i] = self._transform(cache.images[row], int(positions[i]))
        np.take(cache.labels, rows, out=labels)
        if not cache.bad:
            return []
        return [
            cache.bad[row]._replace(epoch=int(located.epoch[i]), position=int(positions[i]))
            for i, row in enumerate(rows.tolist())
            if row in cache.bad
        ]

    def _decode(
        self,
        positions: Integers,
        images: Pixels,
        labels: Integers,
        rows: NDArray[np.int64],
        transform: Transform | None,
    ) -> list[Quarantined]:
        """Decode the images at the positions to rows of `images` and `labels`."""
        quarantined: list[Quarantined] = []
        sources = self._members_of(positions) if self._options.by_member else self._windows_of(positions)
        for (epoch, part, row), position, to in zip(sources, positions.tolist(), rows.tolist(), strict=True):
            try:
                place = images[to] if transform is None else None
                pixels, labels[to] = self.members.decode(part, row, self._format, place)
                if transform is not None:
                    images[to] = transform(pixels, position)
                elif pixels is not place:
                    images[to] = pixels
            except DataError as error:
                shard, key = self.members.where(part, row)
                if not self._options.quarantine:
                    raise DataError(f"{shard}: sample {key!r}: {error}") from error
                images[to], labels[to] = 0, 0
                quarantined.append(Quarantined(epoch, position, shard, key, str(error)))
        return quarantined

    def _windows_of(self, positions: Integers) -> Iterator[tuple[int, EncodedRange, int]]:
        """(epoch, part of a window, row in it) of each position."""
        *names, slots = (column.tolist() for column in self.order.places(positions))
        held = self._held
        for name, slot in zip(zip(*names, strict=True), slots, strict=True):
            window = held.get(name) or self._hold(Window(*name))
            part = bisect_right(window.firsts, slot) - 1
            yield name[1], window.parts[part], slot - window.firsts[part]

    def _members_of(self, positions: Integers) -> Iterator[tuple[int, EncodedRange, int]]:
        """The same with a request for each."""
        located = self.order.locate(positions)
        pairs = zip(located.shard.tolist(), located.index.tolist(), strict=True)
        futures = [self._background.submit(self.members.read, Range(shard, i, i + 1)) for shard, i in pairs]
        for epoch, future in zip(located.epoch.tolist(), futures, strict=True):
            yield epoch, future.result(), 0

    def _hold(self, window: Window) -> HeldWindow:
        """Have a window in the place of the one before it in its stream, and the next one read."""
        stream = window.source, window.stream
        # That one goes before the next is there: the bound on memory is two windows a stream.
        if stream in self._current:
            del self._held[self._current.pop(stream)]
        ahead, future = self._ahead.pop(stream, (None, None))
        held = future.result() if future is not None and ahead == window else self._load(window)
        self._held[window], self._current[stream] = held, window
        self._read_ahead(stream, self.order.following(window))
        return held

    def _read_ahead(self, stream: tuple[int, int], window: Window | None) -> None:
        if window is not None and not (self._cache and self._cache.holds(self.order.ranges(window))):
            self._ahead[stream] = (window, self._background.submit(self._load, window))

    def _load(self, window: Window) -> HeldWindow:
        ranges = self.order.ranges(window)
        sizes = [part.stop - part.start for part in ranges]
        return HeldWindow([self.members.read(part) for part in ranges], [0, *accumulate(sizes[:-1])])


def memory_needed(index: Index, streams: int, window: int) -> int:
    """The encoded bytes that a reader of so many streams holds at most, the windows read ahead included.

    Of the shard whose images are the largest on average, and of no more than the whole set.
    """
    images = min(2 * streams * window, index.images)
    return int(images * index.bytes_per_image)
