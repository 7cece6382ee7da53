"""The shard and the key of images given by their places in a set, for reports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from datasets.shards.index import Index


class SampleName(NamedTuple):
    """Where a sample is, as a person finds it again."""

    shard: str  # URL
    key: str  # of webdataset: the name of its members in the shard, without extension


def sample_names(index: Index, places: Sequence[int]) -> list[SampleName]:
    """The names of the images at `places`, numbers in 0 .. M-1 in the order of the shards.

    Reads the member tables of their shards. Raises DataError or StorageError.
    """
    bounds = np.concatenate([[0], np.cumsum(index.counts)])
    shards = np.searchsorted(bounds, np.asarray(places, dtype=np.int64), side="right") - 1
    keys = {int(shard): index.members(int(shard)).column("key") for shard in np.unique(shards)}
    return [
        SampleName(index.where(int(shard)), str(keys[int(shard)][int(place - bounds[shard])].as_py()))
        for place, shard in zip(places, shards, strict=True)
    ]
