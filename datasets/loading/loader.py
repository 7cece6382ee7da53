"""The batches of a rank: its share of every global batch in training, its part of a set in evaluation."""

from __future__ import annotations

import os

import torch

from datasets.config import DataConfig, in_words
from datasets.errors import DataError
from datasets.loading.batches import Batch, Batches, LocalFiller
from datasets.loading.process_pool import WorkerPool
from datasets.loading.reader_task import Work
from datasets.order.order import check_batch, deal, largest_share
from datasets.order.schedule import Evaluation, Schedule, Training
from datasets.order.streams import streams_of
from datasets.reading.decoded_set import DecodedSet
from datasets.reading.reader import ReaderOptions, memory_needed
from datasets.reading.transform import Transform, output_format
from datasets.shards.index import Index

__all__ = ["Batch", "Batches", "evaluation_batches", "example_batch", "training_batches"]

_MOST_WORKERS = 8


def training_batches(
    config: DataConfig,
    index: Index,
    *,
    seed: int,
    batch: int,
    ranks: int = 1,
    rank: int = 0,
    start: int = 0,
    micro_batch: int | None = None,
    device: torch.device | None = None,
) -> Batches:
    """A rank's share of every global batch of `batch` images, from the image count `start` on, without end.

    Every rank gets the same number n of images, a multiple of `micro_batch` if that is given.
    Raises `DataError` where the streams do not divide the batch or do not go round the ranks.
    """
    streams = streams_of(config, index, batch)
    check_batch(batch, streams)
    if start % batch:
        raise DataError(
            f"{start} images are not a whole number of batches of {batch}: the batch cannot change in a run"
        )
    mine = deal(streams, ranks, rank)
    schedule = Training(seed, batch, streams, config.window, mine, start // batch, config.weights)
    size = largest_share(batch, streams, ranks)
    if micro_batch:
        size = -(-size // micro_batch) * micro_batch
    return _batches(config, index, schedule, size, seed, config.bad_share * index.images, device)


def evaluation_batches(
    config: DataConfig,
    index: Index,
    *,
    batch: int,
    ranks: int = 1,
    rank: int = 0,
    device: torch.device | None = None,
    limit: int | None = None,
) -> Batches:
    """A rank's part of a set, every image once in the order of the shards, `batch` images of this rank at a time.

    Positions are places in the set. All ranks get the same number of batches of the same shape, the last ones padded
    with weight zero. With `limit`, only so many images, spread evenly over the set.
    """
    taken = index.images if limit is None else min(limit, index.images)
    schedule = Evaluation(index.images, taken, batch, ranks, rank)
    return _batches(config, index, schedule, batch, None, config.bad_share * taken, device)


def example_batch(config: DataConfig, index: Index, count: int, device: torch.device | None = None) -> Batch:
    """The first `count` images of a set (fewer if it has fewer), as an evaluation sees them.

    They are decoded in this process: a picture of a few images starts no loader processes.
    """
    alone = config.model_copy(update={"workers": 0})
    with evaluation_batches(alone, index, batch=min(count, index.images), device=device) as batches:
        return next(batches)


def _batches(
    config: DataConfig,
    index: Index,
    schedule: Schedule,
    size: int,
    seed: int | None,
    allowed: float,
    device: torch.device | None,
) -> Batches:
    format = output_format(config, index)
    transform = Transform(config.transform, index.format, seed) if config.transform else None
    fits = 0 < index.images * index.format.bytes <= config.cache
    workers = _workers(config, fits, schedule)
    window = config.window if isinstance(schedule, Training) else schedule.largest
    needed = memory_needed(index, schedule.streams, window)
    said = [f"{schedule.streams} streams in windows of {window} images: up to {in_words(needed)} encoded"]
    by_member = needed > config.memory
    if by_member:
        said = [f"windows of {window} images need {in_words(needed)}, more than data.memory: every image is a request"]
    disk = (config.disk_cache.folder, config.disk_cache.size) if config.disk_cache else None
    options = ReaderOptions(config.on_bad == "quarantine", by_member, disk)
    work = Work(index, schedule, options, transform, format.shape)
    if workers:
        said.append(f"{workers} loader process{'es' * (workers > 1)}")
        return Batches(work, WorkerPool(work, workers, size), size, allowed, device, "; ".join(said))
    said.append("decoded in this process")
    cache = DecodedSet(index) if fits and isinstance(schedule, Training) else None
    if cache is not None:
        said.append(f"kept decoded: {in_words(cache.images.nbytes)}")
    pin = device is not None and device.type == "cuda"
    return Batches(work, LocalFiller(work, cache, size, pin), size, allowed, device, "; ".join(said))


def _workers(config: DataConfig, fits: bool, schedule: Schedule) -> int:
    """Loader processes of this rank: as many as can have a share of the work at the same time.

    A training share is a set of streams, an evaluation share every n-th step. `auto` divides the cores of this machine
    among its ranks.
    """
    shares = schedule.streams if schedule.steps is None else max(schedule.steps, 1)
    if config.workers != "auto":
        return min(config.workers, shares)
    if fits:
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(cores // max(ranks_here, 1), shares, _MOST_WORKERS))
