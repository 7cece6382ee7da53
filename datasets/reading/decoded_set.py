"""A small set decoded once: all images in one array, filled when they are first needed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from datasets.order.order import Located, Range
from datasets.quarantine import Quarantined
from datasets.shards.index import Index


class DecodedSet:
    """The decoded images of a set, uint8 [M, H, W, C], and their labels, int64 [M]."""

    def __init__(self, index: Index):
        self.images = np.empty((index.images, *index.format.shape), dtype=np.uint8)
        self.labels = np.zeros(index.images, dtype=np.int64)
        self.filled = np.zeros(index.images, dtype=bool)
        self.bad: dict[int, Quarantined] = {}  # by row
        self._first = np.concatenate([[0], np.cumsum(index.counts)])  # row of each shard's first image

    def rows(self, located: Located) -> NDArray[np.int64]:
        """The rows of located images."""
        rows: NDArray[np.int64] = self._first[located.shard] + located.index
        return rows

    def holds(self, ranges: list[Range]) -> bool:
        """Whether every image of the ranges has been decoded."""
        starts = [int(self._first[part.shard]) for part in ranges]
        return all(self.filled[s + part.start : s + part.stop].all() for s, part in zip(starts, ranges, strict=True))
