"""Which training shards differ from those that a run was started on: repaired, or left out.

<run>/shards/<fingerprint>.arrow    one row per shard of the set with this fingerprint: set, name, images, crc32
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa

from cluster.storage.errors import MissingError
from cluster.storage.storage import Storage
from datasets.shards.index import Index
from datasets.shards.index_files import encode_table, read_table
from jobs.config.resolved import ResolvedRun
from trainer.errors import TrainingError

FOLDER = "shards"
NAMED = 3  # changed shards in a message


class ShardChange(NamedTuple):
    """A shard that is not what it was when the run was started."""

    shard: str
    images_before: int
    images: int | None  # None: the shard is left out

    def __str__(self) -> str:
        if self.images is None:
            return f"{self.shard} ({self.images_before:,} images) is left out"
        counts = (
            f"{self.images_before:,} images"
            if self.images == self.images_before
            else (f"{self.images_before:,} images before, {self.images:,} now")
        )
        return f"{self.shard} ({counts}) has other content"


def record_shards(run: Storage, index: Index) -> None:
    """Store which shards the set has, if that is not stored yet."""
    path = f"{index.fingerprint}.arrow"
    if not run.folder(FOLDER).exists(path):
        run.folder(FOLDER).write(path, encode_table(_table(index)))


def accepted_changes(run: ResolvedRun, before: str) -> list[ShardChange]:
    """How the training shards differ from those of the fingerprint `before`, none if they do not.

    Raises TrainingError in one line unless `data.accept_changes` allows it: shards may have been repaired or left out,
    none may be new, and most must be the same.
    """
    if before == run.index.fingerprint:
        return []
    url = run.config.run
    refused = f"{url}: was started on other images (names, counts or checksums of the shards differ)"
    try:
        table = read_table(Storage(url).folder(FOLDER), f"{before}.arrow")
    except MissingError as error:  # of an older version
        raise TrainingError(refused) from error
    saved, now = _rows(table), _rows(_table(run.index))
    changes = [
        ShardChange(name, images, now[place, name][0] if (place, name) in now else None)
        for (place, name), (images, crc32) in saved.items()
        if now.get((place, name)) != (images, crc32)
    ]
    if now.keys() - saved.keys() or 2 * len(changes) > len(saved) or not changes:
        raise TrainingError(refused)
    if not run.config.data.accept_changes:
        more = f" and {len(changes) - NAMED} more" * (len(changes) > NAMED)
        listed = "; ".join(map(str, changes[:NAMED]))
        raise TrainingError(f"{refused}: {listed}{more}; data.accept_changes=true continues on the images as they are")
    return changes


def _table(index: Index) -> pa.Table:
    places = np.repeat(np.arange(len(index.set_bounds) - 1), np.diff(index.set_bounds))
    names, images, crc32 = (
        [value for folder in index.folders for value in folder.table.column(name).to_pylist()]
        for name in ("name", "images", "crc32")
    )
    return pa.table({"set": places.tolist(), "name": names, "images": images, "crc32": crc32})


def _rows(table: pa.Table) -> dict[tuple[int, str], tuple[int, int]]:
    """(images, crc32) by (set, name)."""
    places, names, images, crc32 = (table.column(name).to_pylist() for name in ("set", "name", "images", "crc32"))
    return dict(zip(zip(places, names, strict=True), zip(images, crc32, strict=True), strict=True))
