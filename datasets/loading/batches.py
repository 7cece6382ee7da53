"""Batches of tensors, prepared ahead by a thread and copied ahead to a GPU."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
import weakref
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from datasets.errors import DataError
from datasets.loading.reader_task import Work
from datasets.order.order import Integers
from datasets.quarantine import Quarantined, check_share
from datasets.reading.decoded_set import DecodedSet

_AHEAD = 2  # batches prepared ahead


class Batch(NamedTuple):
    """One rank's share of one global batch, by ascending position, padded with images of weight zero."""

    images: Tensor  # uint8 [n, C, H, W], levels, in channels_last memory (as decoded), on a GPU too
    labels: Tensor  # int64 [n]
    positions: Tensor  # int64 [n], in the whole job's order (training) or in the set (evaluation); 0 for padding
    weights: Tensor  # float32 [n]: 1, or 0 for padding and for quarantined images


class Filler(Protocol):
    """Where the images of a step come from: this process, or loader processes."""

    def fill(self, step: int, labels: Integers) -> tuple[Tensor, list[Quarantined]]:
        """A step's n images in the first rows of uint8 [size, H, W, C], what the other rows hold being anything, and
        its labels in int64 [n]; what was quarantined.
        """

    def close(self) -> None:
        """Let go of threads and processes."""


class LocalFiller:
    """Decodes in this process."""

    def __init__(self, work: Work, cache: DecodedSet | None, size: int, pin: bool):
        """`size` is the number of images of a batch, padding included; `pin`: in memory that a GPU can read."""
        self._schedule = work.schedule
        self._reader = work.reader(cache)
        self._shape, self._pin = (size, *work.shape), pin

    def fill(self, step: int, labels: Integers) -> tuple[Tensor, list[Quarantined]]:
        images = torch.empty(self._shape, dtype=torch.uint8, pin_memory=self._pin)
        positions = self._schedule.positions(step)
        n = len(positions)
        return images, self._reader.read(positions, images.numpy()[:n], labels)

    def close(self) -> None:
        self._reader.close()


class Batches:
    """An iterator of `Batch`, one a step, prepared ahead by a thread. Close it, or use it as a context manager.

    What goes wrong while a batch is prepared is raised where that batch would have come. `allowed` is how many images
    may be quarantined in an epoch, here alone, before a `DataError` ends it.
    """

    def __init__(
        self, work: Work, filler: Filler, size: int, allowed: float, device: torch.device | None, description: str
    ):
        self.waited = 0.0  # seconds that the consumer has waited for data
        self.quarantined: list[Quarantined] = []  # among the batches handed out so far
        self._allowed = allowed
        self._description = description
        self._ready: queue.Queue[_Prepared | BaseException | None] = queue.Queue(_AHEAD)
        stop = threading.Event()
        maker = _Maker(work, filler, size, _cuda_device(device))
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
            if prepared.quarantined:
                self._write_down(prepared.quarantined)
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

    def _write_down(self, entries: list[Quarantined]) -> None:
        self.quarantined += entries
        try:
            check_share(self.quarantined, self._allowed)
        except DataError:
            self.close()
            raise


class _Prepared(NamedTuple):
    """A batch, and the event on the device after which it is there."""

    batch: Batch
    quarantined: list[Quarantined]
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

    def __init__(self, work: Work, filler: Filler, size: int, device: torch.device | None):
        self.schedule = work.schedule
        self._filler = filler
        self._size = size
        self._device = device
        self._stream = torch.cuda.Stream(device) if device else None

    def enter_thread(self) -> None:
        """Make the rank's GPU current in this thread: pinning memory creates a context on the current one, GPU 0."""
        if self._device is not None:
            torch.cuda.set_device(self._device)

    def make(self, step: int) -> _Prepared:
        positions = self.schedule.positions(step)
        n, size = len(positions), self._size
        # numpy: torch's calls would cost more than all else that is done here for a batch
        labels, places = np.zeros((2, size), dtype=np.int64)
        weights = np.zeros(size, dtype=np.float32)
        images, quarantined = self._filler.fill(step, labels[:n])
        if n < size:
            images[n:] = 0
        places[:n] = positions
        weights[:n] = 1
        if quarantined:
            weights[np.searchsorted(positions, [entry.position for entry in quarantined])] = 0
        batch = Batch(images, *(torch.from_numpy(column) for column in (labels, places, weights)))
        if self._stream is None:
            return _Prepared(batch._replace(images=images.permute(0, 3, 1, 2)), quarantined, None)
        batch = Batch(*(tensor.pin_memory() for tensor in batch))  # the images as they are, if they are that already
        with torch.cuda.stream(self._stream):
            there = Batch(*(tensor.to(self._device, non_blocking=True) for tensor in batch))
            there = there._replace(images=there.images.permute(0, 3, 1, 2))
            return _Prepared(there, quarantined, self._stream.record_event())


def _cuda_device(device: torch.device | None) -> torch.device | None:
    """The GPU with its number, which a thread has to name; None for a CPU."""
    if device is None or device.type != "cuda":
        return None
    return device if device.index is not None else torch.device("cuda", torch.cuda.current_device())


def _pump(maker: _Maker, ready: queue.Queue[_Prepared | BaseException | None], stop: threading.Event) -> None:
    """Prepare batches until told to stop; the last thing that comes is an error, or None at the end."""
    last: BaseException | None = None
    try:
        maker.enter_thread()
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
