"""Snapshots of power-function averages in a run folder, and the average of any width made of them.

    <run>/averages/000000012800-0002-0.050.safetensors    after 12800 images, by attempt 2, of relative width 0.05
    <run>/averages/000000012800-0002-0.050-from-6400.safetensors    averaged since 6400 images

Like rows of metrics, only snapshots of the newest lineage count: what an attempt wrote after the commit that the next
one started from is passed over.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from cluster.storage.storage import Storage
from trainer.checkpoints.checkpointer import Checkpointer
from trainer.checkpoints.commit import Commit
from trainer.checkpoints.lineage import Lineage
from trainer.checkpoints.profiles import Snapshot, combination
from trainer.checkpoints.tensor_files import from_safetensors, to_safetensors
from trainer.distributed.ranks import rank
from trainer.errors import TrainingError

if TYPE_CHECKING:
    from trainer.training.posthoc_ema import PosthocEma

FOLDER = "averages"
_NAME = re.compile(r"(\d{12,}-\d{4,})-(0\.\d{3})(?:-from-(\d+))?\.safetensors")


class Reconstruction(NamedTuple):
    """An average computed from snapshots."""

    images: int  # seen when the average ends
    tensors: dict[str, Tensor]  # float32, of the trained parameters


def take_snapshots(checkpointer: Checkpointer, images: int, posthoc: PosthocEma) -> None:
    """Copy the averages after `images` images to host memory and store them in the background, by rank 0, before the
    next commit is made. All ranks together.

    If the store fails, only this snapshot is lost.
    """
    assert checkpointer.attempt is not None
    place, averages = Commit(images, checkpointer.attempt.number), posthoc.halves()
    start = posthoc.start
    if rank() == 0:
        checkpointer.background.submit(
            "a snapshot of the averages", lambda: write_snapshots(checkpointer.run, place, averages, start)
        )


def write_snapshots(
    run: Storage, place: Commit, averages: Mapping[float, Mapping[str, Tensor]], start: int = 0
) -> None:
    """Store averages, by width, after the images and by the attempt of `place`; averaging began at `start` images."""
    suffix = f"-from-{start}" if start else ""
    for width, tensors in averages.items():
        run.folder(FOLDER).write(f"{place.name}-{width:.3f}{suffix}.safetensors", to_safetensors(tensors))


def stored_snapshots(run: Storage) -> dict[str, Snapshot]:
    """The snapshots of the newest lineage, by file name."""
    last = {attempt: end for attempt, _, end in Lineage(run).segments()}
    found: dict[str, Snapshot] = {}
    for entry in run.folder(FOLDER).list():
        match = _NAME.fullmatch(entry.path)
        place = Commit.named(match[1]) if match else None
        if match and place and place.attempt in last:
            end = last[place.attempt]
            if end is None or place.images <= end:
                found[entry.path] = Snapshot(place.images, float(match[2]), int(match[3] or 0))
    return found


def reconstruct(run: Storage, width: float, images: int | None = None) -> Reconstruction:
    """The average of relative width `width` after `images` images (None: the last snapshot's).

    Where averaging was stopped and started again, the snapshots since its last start count.

    Raises TrainingError if nothing has been stored, or nothing for that image count.
    """
    folder, snapshots = run.folder(FOLDER), stored_snapshots(run)
    if not snapshots:
        raise TrainingError(f"{folder.url}: no snapshots of averages; a run with optim.posthoc stores them")
    counts = [snapshot.images for snapshot in snapshots.values()]
    wanted = Snapshot(images or max(counts), width)
    start = max((s.start for s in snapshots.values() if s.images <= wanted.images), default=0)
    if not min(counts) <= wanted.images <= max(counts):
        raise TrainingError(
            f"{folder.url}: the snapshots reach from {min(counts):,} to {max(counts):,} images, not {wanted.images:,}"
        )
    used = {name: s for name, s in snapshots.items() if s.images <= wanted.images and s.start == start}
    since = [Snapshot(snapshot.images - start, snapshot.width) for snapshot in used.values()]
    total: dict[str, Tensor] = {}
    for name, factor in zip(used, combination(since, Snapshot(wanted.images - start, width)), strict=True):
        for key, value in from_safetensors(f"{folder.url}/{name}", folder.read(name)).items():
            total[key] = total.get(key, torch.zeros(())) + float(factor) * value.float()
    return Reconstruction(wanted.images, total)
