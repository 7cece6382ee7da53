"""Batches for a rank: its share of every global batch, padded to one shape, prepared ahead."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
import weakref
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from datasets.cache import DecodedSet
from datasets.config import DataConfig
from datasets.decode import Pixels
from datasets.index import Index
from datasets.order import Integers, largest_share
from datasets.reader import Reader, memory_needed
from datasets.schedule import Evaluation, Schedule, Training
from datasets.workers import WorkerPool

_AHEAD = 2  # batches prepared ahead
_MOST_WORKERS = 8


class Batch(NamedTuple):
    """One rank's share of one global batch, by ascending position, padded with images of weight zero."""

    images: Tensor  # uint8 [n, C, H, W], levels
    labels: Tensor  # int64 [n]
    positions: Tensor  # int64 [n], in the whole job's order (training) or in the set (evaluation); 0 for padding
    weights: Tensor  # float32 [n]: 1, or 0 for padding


class Filler(Protocol):
    """Where the images of a step come from: this process, or loader processes."""

    def fill(self, step: int, images: Pixels, labels: Integers) -> None:
        """Decode a step's images into uint8 [n, H, W, C] and its labels into int64 [n]."""

    def close(self) -> None:
        """Let go of threads and processes."""


class LocalFiller:
    """Decodes in this process."""

    def __init__(self, index: Index, schedule: Schedule, cache: DecodedSet | None):
        self._schedule = schedule
        self._reader = Reader(index, schedule.order(index), cache)
        self.close = self._reader.close

    def fill(self, step: int, images: Pixels, labels: Integers) -> None:
        self._reader.read(self._schedule.positions(step), images, labels)


class Batches:
    """An iterator of `Batch`, one a step, prepared ahead by a thread. Close it, or use it as a context manager.

    What goes wrong while a batch is prepared is raised where that batch would have come.
    """

    def __init__(
        self, index: Index, schedule: Schedule, filler: Filler, size: int, device: torch.device | None, description: str
    ):
        self.waited = 0.0  # seconds that the consumer has waited for data
        self._description = description
        self._device = device if device is not None and device.type == "cuda" else None
        self._ready: queue.Queue[_Prepared | BaseException | None] = queue.Queue(_AHEAD)
        stop = threading.Event()
        maker = _Maker(index, schedule, filler, size, self._device)
        thread = threading.Thread(target=_pump, args=(maker, self._ready, stop), name="batches", daemon=True)
        # Runs at close, when the iterator is dropped, or at exit before the interpreter takes itself down.
        self._finish = weakref.finalize(self, _finish, thread, self._ready, stop, filler)
        thread.start()

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if not self._finish.alive:
            raise StopIteration
        began = time.perf_counter()
        prepared = self._ready.get()
        self.waited += time.perf_counter() - began
        if isinstance(prepared, _Prepared):
            return prepared.on_this_stream()
        self.close()
        if prepared is None:
            raise StopIteration
        raise prepared

    def close(self) -> None:
        """End the thread and the loader processes; more batches do not come."""
        self._finish()

    def describe(self) -> str:
        """One line about streams, windows and memory."""
        return self._description


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
    schedule = Training.of_rank(
        seed=seed, batch=batch, streams=config.streams, window=config.window, ranks=ranks, rank=rank, start=start
    )
    size = largest_share(batch, config.streams, ranks)
    if micro_batch:
        size = -(-size // micro_batch) * micro_batch
    return _batches(config, index, schedule, size, device)


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
    return _batches(config, index, Evaluation(index.images, taken, batch, ranks, rank), batch, device)


def _batches(config: DataConfig, index: Index, schedule: Schedule, size: int, device: torch.device | None) -> Batches:
    fits = index.images * index.format.bytes <= config.cache
    workers = _workers(config, fits, schedule)
    needed = memory_needed(index, schedule.streams, config.window)
    lines = [f"{schedule.streams} streams in windows of {config.window} images: up to {_readable(needed)} encoded"]
    cache = DecodedSet(index) if fits and not workers and isinstance(schedule, Training) else None
    if cache is not None:
        lines.append(f"decoded once and kept: {_readable(cache.images.nbytes)}")
    lines.append(f"{workers} loader processes" if workers else "decoded in this process")
    filler: Filler = WorkerPool(index, schedule, workers) if workers else LocalFiller(index, schedule, cache)
    return Batches(index, schedule, filler, size, device, "; ".join(lines))


def _workers(config: DataConfig, fits: bool, schedule: Schedule) -> int:
    if config.workers != "auto":
        most = schedule.streams if isinstance(schedule, Training) else config.workers
        return min(config.workers, most)
    if fits:
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(cores // max(here, 1), schedule.streams, _MOST_WORKERS))


class _Prepared(NamedTuple):
    """A batch, and the event on the device after which it is there."""

    batch: Batch
    copied: torch.cuda.Event | None

    def on_this_stream(self) -> Batch:
        """The batch, for use by the current CUDA stream."""
        if self.copied is not None:
            stream = torch.cuda.current_stream(self.batch.images.device)
            stream.wait_event(self.copied)
            for tensor in self.batch:
                tensor.record_stream(stream)
        return self.batch


class _Maker:
    """Makes the batch of a step."""

    def __init__(self, index: Index, schedule: Schedule, filler: Filler, size: int, device: torch.device | None):
        self.schedule = schedule
        self._filler = filler
        self._shape = (size, *index.format.shape)
        self._device = device
        self._stream = torch.cuda.Stream(device) if device else None

    def make(self, step: int) -> _Prepared:
        positions = self.schedule.positions(step)
        n, size, pin = len(positions), self._shape[0], self._device is not None
        images = torch.empty(self._shape, dtype=torch.uint8, pin_memory=pin)
        images[n:] = 0
        labels = torch.zeros(size, dtype=torch.int64, pin_memory=pin)
        places = torch.zeros(size, dtype=torch.int64, pin_memory=pin)
        weights = torch.zeros(size, dtype=torch.float32, pin_memory=pin)
        self._filler.fill(step, images.numpy()[:n], labels.numpy()[:n])
        places[:n] = torch.from_numpy(positions)
        weights[:n] = 1
        batch = Batch(images, labels, places, weights)
        if self._stream is None:
            return _Prepared(batch._replace(images=_channels_first(images)), None)
        with torch.cuda.stream(self._stream):
            there = Batch(*(tensor.to(self._device, non_blocking=True) for tensor in batch))
            there = there._replace(images=_channels_first(there.images))
            return _Prepared(there, self._stream.record_event())


def _channels_first(images: Tensor) -> Tensor:
    return images.permute(0, 3, 1, 2).contiguous()


def _pump(maker: _Maker, ready: queue.Queue[_Prepared | BaseException | None], stop: threading.Event) -> None:
    """Prepare batches until told to stop; the last thing that comes is an error, or None at the end."""
    last: BaseException | None = None
    try:
        step = maker.schedule.first
        while not stop.is_set() and (maker.schedule.steps is None or step < maker.schedule.steps):
            _put(ready, maker.make(step), stop)
            step += 1
    except BaseException as error:
        last = error
    _put(ready, last, stop)


def _put(ready: queue.Queue, item: object, stop: threading.Event) -> None:
    while not stop.is_set():
        with contextlib.suppress(queue.Full):
            ready.put(item, timeout=0.1)
            return


def _finish(thread: threading.Thread, ready: queue.Queue, stop: threading.Event, filler: Filler) -> None:
    stop.set()
    with contextlib.suppress(queue.Empty):
        while True:
            ready.get_nowait()
    filler.close()
    thread.join(timeout=5)


def _readable(size: float) -> str:
    """Bytes in words."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size:.0f} {unit}" if size >= 10 or unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError
