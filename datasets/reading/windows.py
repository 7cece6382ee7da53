"""Windows of encoded samples: one range request per shard they touch; the next window of a stream is read ahead."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from itertools import accumulate
from typing import NamedTuple

from datasets.order.order import ImageOrder, Window
from datasets.reading.background import Background
from datasets.reading.shard_reader import EncodedRange, ShardReader

_THREADS = 4  # concurrent requests


class EncodedWindow(NamedTuple):
    """A window in memory: slot s is row s - firsts[i] of part i, the last part with firsts[i] <= s."""

    parts: list[EncodedRange]
    firsts: list[int]


class WindowReader:
    """Holds the current window of each stream and reads the next one in a thread.

    `held` is keyed by `Window` (or an equal tuple). `needed(window)` tells whether a window is worth reading ahead.
    """

    def __init__(self, order: ImageOrder, shards: ShardReader, needed: Callable[[Window], bool] = lambda window: True):
        self.held: dict[tuple[int, int, int, int], EncodedWindow] = {}
        self.ahead: dict[tuple[int, int], tuple[Window, Future[EncodedWindow]]] = {}  # by (source, stream)
        self._order = order
        self._shards = shards
        self._needed = needed
        self._current: dict[tuple[int, int], Window] = {}
        self._background = Background(_THREADS)

    def read(self, window: Window) -> EncodedWindow:
        """Replace the window of a stream by this one, and start to read the one after it."""
        stream = window.source, window.stream
        # The old window is dropped before the new one is there: at most two windows per stream are in memory.
        if stream in self._current:
            del self.held[self._current.pop(stream)]
        ahead, future = self.ahead.pop(stream, (None, None))
        encoded = future.result() if future is not None and ahead == window else self._load(window)
        self.held[window], self._current[stream] = encoded, window
        following = self._order.following(window)
        if following is not None and self._needed(following):
            self.ahead[stream] = following, self._background.submit(self._load, following)
        return encoded

    def close(self) -> None:
        """Stop reading ahead and drop all windows."""
        self._background.close()
        self.held.clear()
        self.ahead.clear()
        self._current.clear()

    def _load(self, window: Window) -> EncodedWindow:
        ranges = self._order.ranges(window)
        sizes = [part.stop - part.start for part in ranges]
        return EncodedWindow([self._shards.read(part) for part in ranges], [0, *accumulate(sizes[:-1])])
