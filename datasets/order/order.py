"""What an order of images is: positions 0, 1, 2, ... of a job, each in a slot of a window of neighbours in the shards.

A reader needs no more than this protocol; `ShuffledOrder` and `MixedOrder` (training) and `SequentialOrder`
(evaluation) implement it.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]


class Places(NamedTuple):
    """The window and slot of positions: int64 [n] each. (source, epoch, stream, number) names the `Window`."""

    source: Integers  # which of several mixed sets; 0 if there is one
    epoch: Integers  # of that set
    stream: Integers
    number: Integers  # of the window in the stream's span of the epoch
    slot: Integers  # in the window, in the order of the shard's bytes


class Located(NamedTuple):
    """The samples at positions: int64 [n] each."""

    epoch: Integers
    shard: Integers
    index: Integers  # type: ignore[assignment]  # in the shard


class Window(NamedTuple):
    """The name of a window: neighbouring samples that a reader fetches at once."""

    source: int
    epoch: int
    stream: int
    number: int


class Range(NamedTuple):
    """The samples [start, stop) of a shard."""

    shard: int
    start: int
    stop: int


class ImageOrder(Protocol):
    """Maps positions to windows, and windows to samples of shards."""

    def places(self, positions: Integers) -> Places:
        """The window and slot of each position, int64 [n]."""

    def locate(self, places: Places) -> Located:
        """The epoch, shard and index in the shard of each place."""

    def ranges(self, window: Window) -> list[Range]:
        """The samples of a window: slots 0, 1, ... are the samples of these ranges in turn."""

    def following(self, window: Window) -> Window | None:
        """The next window that a reader of this stream needs; None at the end."""
