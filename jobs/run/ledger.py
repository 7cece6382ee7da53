"""The data ledger of a run: images expected, seen and quarantined in each epoch, as part of its rows of metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch.distributed as dist

from cluster.storage.storage import Storage
from datasets.config import DataConfig
from datasets.errors import DataError
from datasets.loading.batches import Batches
from datasets.quarantine import Quarantined, check_share, epoch_rows
from datasets.shards.index import Index
from jobs.config.shard_changes import ShardChange
from trainer.checkpoints.journal import read_metrics
from trainer.distributed.ranks import on_rank_zero, world_size


class Ledger:
    """Accounts in each row of metrics for the images since the row before.

    "ledger": [{"epoch", "expected", "seen", "quarantined"} ...], one entry for each finished epoch (of a single set);
    "quarantined": [{"epoch", "position", "shard", "key", "reason"} ...], one entry for each unusable image;
    "changed_shards": [{"shard", "images_before", "images" (null: left out), "at"} ...], at a resume after "at" images,
    in whose epoch some images come twice or not at all if counts changed, so that it has no entry in "ledger"; and the
    totals "data/epoch" and "data/quarantined"; where samples of the shards are no part of the set, "data/samples" and
    its parts "data/indexed" and "data/quarantined_by_index"; "data/unknown/NAME/REASON", images whose condition NAME
    had no value. Raises DataError above `data.bad_share`.
    """

    def __init__(self, config: DataConfig, index: Index, run: Storage):
        self.run = run
        self.images_of_set = 0 if config.mixture else index.images
        self.has_conditions = bool(config.conditions)
        self.may_quarantine = config.on_bad == "quarantine"
        self.allowed = config.bad_share * index.images
        self.indexed, self.left_out = index.images, index.quarantined
        self.images = 0  # of the last row
        self.batches: Batches | None = None
        self.reported = 0  # entries of this rank's batches that are in a row
        self.counted: Counter[str] = Counter()  # conditions without a value, of this rank's batches, that are in a row
        self.entries: list[Quarantined] = []  # of all ranks, over the life of the run
        self.changes: list[dict[str, Any]] = []  # of shards, that are in no row yet; on rank 0
        self.changed: list[dict[str, Any]] = []  # all others

    def expect(self, changes: Sequence[ShardChange], images: int) -> None:
        """The run continues after `images` images on shards that have changed; on rank 0, before `follow`."""
        self.changes = [change._asdict() | {"at": images} for change in changes]

    def follow(self, batches: Batches, images: int) -> None:
        """Account for `batches`, which start at `images`. All ranks together."""
        self.batches, self.images, self.reported, self.entries = batches, 0, 0, []
        self.counted = Counter()
        if images:
            rows = on_rank_zero(lambda: read_metrics(self.run))
            self.images = max((row["images"] for row in rows if "data/epoch" in row), default=0)
            self.entries = [Quarantined(**entry) for row in rows for entry in row.get("quarantined", [])]
            self.changed = [change for row in rows for change in row.get("changed_shards", [])]

    def row(self, images: int) -> dict[str, Any]:
        """The figures of the row at `images`. All ranks together."""
        return self._row(images, self._unreported()) | self._unknown()

    def unreported(self, images: int) -> dict[str, Any]:
        """The same if images were quarantined since the last row, which a commit must not lose; else empty."""
        fresh = self._unreported()
        return self._row(images, fresh) if fresh or self.changes else {}

    def _row(self, images: int, fresh: list[Quarantined]) -> dict[str, Any]:
        row: dict[str, Any] = self._of_index()
        if self.changes:
            row["changed_shards"] = self.changes
            self.changed, self.changes = self.changed + self.changes, []
        if self.may_quarantine:
            if fresh:
                self.entries += fresh
                check_share(self.entries, self.allowed)  # raises on all ranks: they have the same entries
                row["quarantined"] = [entry._asdict() for entry in fresh]
            row["data/quarantined"] = len(self.entries)
        if self.images_of_set:
            row["data/epoch"] = images / self.images_of_set
            mixed = {
                change["at"] // self.images_of_set
                for change in self.changed
                if change["images"] != change["images_before"] and change["at"] % self.images_of_set
            }
            since = range(self.images // self.images_of_set, images // self.images_of_set)
            if ended := [epoch for epoch in since if epoch not in mixed]:
                epochs = epoch_rows(self.images_of_set, images, self.entries)
                row["ledger"] = [epochs[epoch]._asdict() for epoch in ended]
        self.images = images
        return row

    def _of_index(self) -> dict[str, Any]:
        """What indexing found in the shards, if some of it cannot be used."""
        if not self.left_out:
            return {}
        figures = {"samples": self.indexed + self.left_out, "indexed": self.indexed}
        figures["quarantined_by_index"] = self.left_out
        return {f"data/{name}": count for name, count in figures.items()}

    def _unknown(self) -> dict[str, Any]:
        """Images since the last row whose captions (or other conditions) were not known: data/unknown/NAME/REASON."""
        if not self.has_conditions:
            return {}
        assert self.batches is not None
        mine = self.batches.unknown - self.counted
        self.counted += mine
        parts: list[Counter[str]] = [mine]
        if world_size() > 1:
            parts = [Counter() for _ in range(world_size())]
            dist.all_gather_object(parts, mine)
        return {f"data/unknown/{name}": count for name, count in sorted(sum(parts, Counter[str]()).items())}

    def _unreported(self) -> list[Quarantined]:
        """The entries of all ranks that are in no row yet, ordered by position."""
        if not self.may_quarantine:
            return []
        assert self.batches is not None
        mine = self.batches.quarantined[self.reported :]
        self.reported += len(mine)
        if world_size() == 1:
            return mine
        parts: list[list[Quarantined]] = [[] for _ in range(world_size())]
        dist.all_gather_object(parts, mine)
        return sorted((entry for part in parts for entry in part), key=lambda entry: entry.position)


def left_out(config: DataConfig, index: Index, counted: int, taken: int | None = None) -> list[str]:
    """A warning if an evaluation over all ranks counted fewer images than the set has, or than were `taken` from it.

    Raises DataError if the missing share exceeds `data.bad_share`.
    """
    taken = index.images if taken is None else taken
    missing = taken - counted
    if not missing:
        return []
    what = f"{index.url}: {missing:,} of {taken:,} images are bad and were left out"
    if missing > config.bad_share * taken:
        raise DataError(f"{what}, more than data.bad_share allows")
    return [f"{what}; python -m jobs.verify names them"]
