"""What the data path promises besides its pace: python -m tests.benchmarks.data_bounds FOLDER (made by data.py)

A line each: the time to the first batch and to the first one after a restart in the middle of an epoch, the bytes read
over the bytes of the shards for several numbers of ranks, and memory over ten epochs.
"""

from __future__ import annotations

import os
import statistics
import sys
import time

import psutil
import torch

from cluster.storage.sizes import format_bytes
from datasets.config import DataConfig
from datasets.loading.build import training_batches
from datasets.order.streams import memory_needed
from datasets.shards.index import Index

BATCH, STREAMS, WINDOW, EPOCHS = 128, 16, 64, 10


def config_of(url: str, workers: int) -> DataConfig:
    return DataConfig(shards=url, streams=STREAMS, window=WINDOW, workers=workers, cache=0)


def seconds_to_a_batch(url: str, workers: int, start: int) -> float:
    """From nothing but a URL to a batch; median of five."""
    taken = []
    for _ in range(5):
        began = time.perf_counter()
        with training_batches(config_of(url, workers), Index.open(url), seed=0, batch=BATCH, start=start) as batches:
            next(batches)
            taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def bytes_read(url: str, ranks: int) -> float:
    """Bytes that all ranks read in two epochs after the first, over twice those of the shards."""
    index, read = Index.open(url), 0
    steps = index.images // BATCH
    for rank in range(ranks):
        with training_batches(
            config_of(url, 0), index, seed=0, batch=BATCH, ranks=ranks, rank=rank, start=steps * BATCH
        ) as batches:
            next(batches)
            before = psutil.Process().io_counters().read_chars
            for _ in range(2 * steps):
                next(batches)
            read += psutil.Process().io_counters().read_chars - before
    return read / (2 * sum(index.shard(number).bytes for number in range(len(index))))


def memory(url: str) -> list[float]:
    """Resident bytes at the end of each of ten epochs."""
    index, process, held = Index.open(url), psutil.Process(), []
    with training_batches(config_of(url, 0), index, seed=0, batch=BATCH) as batches:
        for step in range(EPOCHS * index.images // BATCH):
            next(batches)
            if (step + 1) * BATCH % index.images < BATCH:
                held.append(process.memory_info().rss)
    return held


def main(folder: str) -> None:
    torch.set_num_threads(1)
    for format, size in (("png", "32x32 PNG"), ("jpg", "256x256 JPEG")):
        url = f"{folder}/{format}"
        index = Index.open(url)
        middle = 7 * index.images // 2 // BATCH * BATCH  # of the fourth epoch
        print(
            f"\n{size}: {index.images} images, {STREAMS} streams in windows of {WINDOW}; load {os.getloadavg()[0]:.1f}"
        )
        for workers in (0, 2):
            first, resumed = (seconds_to_a_batch(url, workers, start) for start in (0, middle))
            print(
                f"  first batch {first:.2f} s, in the middle of an epoch {resumed:.2f} s ({workers} workers)",
                flush=True,
            )
        ratios = ", ".join(f"{bytes_read(url, ranks):.3f} with {ranks}" for ranks in (1, 2, 3, 8))
        print(f"  bytes read over the shards' bytes, by ranks: {ratios}", flush=True)
        bound, held = memory_needed(index, STREAMS, WINDOW), memory(url)
        ends = f"{format_bytes(held[0])} after the first of {EPOCHS} epochs, {format_bytes(held[-1])} after the last"
        print(f"  resident {ends}; encoded images at most {format_bytes(bound)}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
