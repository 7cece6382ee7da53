"""A small set with captions, scores and duplicates, whose selections can be counted by hand."""

from __future__ import annotations

import json
from pathlib import Path

from datasets.shards.index import Index
from datasets.shards.indexing import IndexOptions, index_shards
from tests.datasets.small_sets import png, write_members

SHARDS, IMAGES = 4, 10  # of each shard
COLUMNS = ("json.score", "json.meta.name")


def score(number: int) -> float | None:
    """The score in the .json of a sample: 0, 0.1, ..., 0.9 in each shard; every fifth has none."""
    return None if number % 5 == 4 else number % 10 / 10


def write_scored(folder: Path, columns: tuple[str, ...] = COLUMNS) -> Index:
    """Samples 0 to 39: odd ones in colour; 30 to 39 have the images of 0 to 9."""
    for shard in range(SHARDS):
        members = []
        for number in range(shard * IMAGES, (shard + 1) * IMAGES):
            fields = {"score": score(number), "meta": {"name": f"n{number}"}}
            members += [
                (f"{number:04d}.png", png(number % 30, channels=3 if number % 2 else 1)),
                (f"{number:04d}.txt", b"x" * number),
                (f"{number:04d}.json", json.dumps(fields).encode()),
            ]
        write_members(folder / f"{shard}.tar", members)
    index_shards(str(folder), f"{folder}/index", IndexOptions(columns=columns))
    return Index.open(str(folder))
