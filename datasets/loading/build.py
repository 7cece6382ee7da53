"""Build the batches of a rank: its share of every global batch in training, its part of a set in evaluation."""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import MappingProxyType

import torch

from cluster.storage.sizes import format_bytes
from datasets.config import DataConfig
from datasets.errors import DataError
from datasets.loading.batches import Batches
from datasets.loading.conditions import conditions_of
from datasets.loading.loader_pool import LoaderPool
from datasets.loading.local_loader import LocalLoader
from datasets.loading.transforms import output_format, transform_of
from datasets.order.evaluation_steps import EvaluationSteps
from datasets.order.steps import Steps
from datasets.order.streams import memory_needed, streams_of
from datasets.order.training_steps import TrainingSteps
from datasets.order.versions import NEWEST
from datasets.reading.decoded_set import DecodedSet
from datasets.reading.step_reader import ReadPlan
from datasets.shards.index import Index

_MOST_PROCESSES = 8  # of a rank, with `data.workers: auto`


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
    order_version: int = NEWEST,
    tokenizers: Mapping[str, str] = MappingProxyType({}),
) -> Batches:
    """A rank's share of every global batch of `batch` images, from image count `start` on; endless.

    All ranks get batches of the same number of rows, a multiple of `micro_batch` if given. `tokenizers`: the contents
    of a tokenizer.json for each text condition. Raises `DataError` if the streams do not divide the batch, or there are
    fewer streams than ranks.
    """
    if start % batch:
        raise DataError(
            f"{start} images are not a whole number of batches of {batch}: the batch cannot change in a run"
        )
    streams = streams_of(config, index, batch)
    first = start // batch
    steps = TrainingSteps(
        seed, batch, streams, config.window, ranks, rank, first, micro_batch, config.weights, order_version
    )
    mine = len(steps.streams_of_rank)
    needed = memory_needed(index, mine, config.window)
    plan = _plan(config, index, steps, seed, needed > config.memory, tokenizers)
    description = f"{mine} streams in windows of {config.window} images: up to {format_bytes(needed)} encoded"
    if plan.by_sample:
        description = f"windows of {config.window} images need {format_bytes(needed)}, more than data.memory: "
        description += "one request per image"
    max_quarantined = config.bad_share * index.images
    if processes := _processes(config, index, steps):
        description += _in_processes(processes)
        return Batches(LoaderPool(plan, processes), None, max_quarantined, device, description)
    decoded = DecodedSet(index, plan.conditions) if _fits(config, index) else None
    description += "; decoded in this process"
    if decoded is not None:
        description += f"; kept decoded: {format_bytes(decoded.nbytes)}"
    return Batches(LocalLoader(plan, decoded, _pinned(device)), None, max_quarantined, device, description)


def evaluation_batches(
    config: DataConfig,
    index: Index,
    *,
    batch: int,
    ranks: int = 1,
    rank: int = 0,
    device: torch.device | None = None,
    limit: int | None = None,
    tokenizers: Mapping[str, str] = MappingProxyType({}),
) -> Batches:
    """A rank's part of a set, every image once in the order of the shards, `batch` images of this rank at a time.

    Positions are places in the set. All ranks get the same number of batches of the same shape, the last ones padded
    with weight zero. `limit`: evaluate only this many images, spread evenly over the set.
    """
    taken = index.images if limit is None else min(limit, index.images)
    steps = EvaluationSteps(index.images, taken, batch, ranks, rank)
    needed = memory_needed(index, 1, batch)  # of each process
    processes = min(_processes(config, index, steps), max(1, config.memory // max(needed, 1)))
    plan = _plan(config, index, steps, None, needed > config.memory, tokenizers)
    description = f"{taken} images in batches of {batch}: up to {format_bytes(max(processes, 1) * needed)} encoded"
    loader = LoaderPool(plan, processes) if processes else LocalLoader(plan, None, _pinned(device))
    description += _in_processes(processes) if processes else "; decoded in this process"
    return Batches(loader, steps.end, config.bad_share * taken, device, description)


def _plan(
    config: DataConfig,
    index: Index,
    steps: Steps,
    seed: int | None,
    by_sample: bool,
    tokenizers: Mapping[str, str],
) -> ReadPlan:
    output_format(config, index)  # raises where the images differ in size
    transform = transform_of(config, index.format, seed)
    disk = (config.disk_cache.folder, config.disk_cache.size) if config.disk_cache else None
    conditions = conditions_of(config, index, tokenizers, seed, transform)
    return ReadPlan(index, steps, transform, config.on_bad == "quarantine", by_sample, disk, conditions)


def _processes(config: DataConfig, index: Index, steps: Steps) -> int:
    """Loader processes of this rank. `auto` divides the cores of this machine among its ranks."""
    if config.workers != "auto":
        return min(config.workers, steps.max_readers)
    if _fits(config, index):
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(cores // max(ranks_here, 1), steps.max_readers, _MOST_PROCESSES))


def _fits(config: DataConfig, index: Index) -> bool:
    """Whether the decoded set fits into `data.cache`."""
    return 0 < index.images * index.format.bytes <= config.cache


def _in_processes(processes: int) -> str:
    return f"; {processes} loader process{'es' * (processes > 1)}"


def _pinned(device: torch.device | None) -> bool:
    return device is not None and device.type == "cuda"
