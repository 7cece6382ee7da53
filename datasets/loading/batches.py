"""Batches of tensors, prepared ahead by a thread and copied to the rank's GPU ahead of time."""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from datasets.conditions.captions import IDS, LENGTHS
from datasets.conditions.condition import Arrays
from datasets.errors import DataError
from datasets.order.order import Integers
from datasets.quarantine import Quarantined, check_share
from datasets.reading.step_reader import Account, Floats

_AHEAD = 2  # batches prepared ahead


class Tokens(NamedTuple):
    """Captions as the ids of their tokens, or as vectors that an encoder made of these."""

    ids: Tensor  # int32 [n, T], or float16 [n, T, size]; 0 after the end
    lengths: Tensor  # int32 [n]; 0: no caption


class Batch(NamedTuple):
    """One rank's share of one global batch, by ascending position, padded with images of weight zero."""

    images: Tensor  # uint8 [n, C, H, W], levels, in channels_last memory (as decoded), on a GPU too; or in patches,
    #                 uint8 [n, N, 2 + P * P * C]: see `PatchTransform`
    positions: Tensor  # int64 [n], in the whole job's order (training) or in the set (evaluation); 0 for padding
    weights: Tensor  # float32 [n]: 1, or 0 for padding and for quarantined images
    conditions: dict[str, Tensor | Tokens]  # [n, ...] each, by name; zeros where the weight is 0

    def tensors(self) -> Iterator[Tensor]:
        """All tensors."""
        yield from (self.images, self.positions, self.weights)
        for value in self.conditions.values():
            yield from (value,) if isinstance(value, Tensor) else value

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with `function` applied to every tensor."""
        images, positions, weights = map(function, self[:3])
        conditions = {
            name: function(value) if isinstance(value, Tensor) else Tokens(*map(function, value))
            for name, value in self.conditions.items()
        }
        return Batch(images, positions, weights, conditions)


class FilledBatch(NamedTuple):
    """A batch as a loader hands it over."""

    images: Tensor  # uint8 [n, H, W, C] or [n, N, 2 + P * P * C], on the host
    positions: Integers  # int64 [n]
    weights: Floats  # float32 [n]
    conditions: Arrays  # [n, ...] each
    account: Account


class Loader(Protocol):
    """Where batches come from: `LocalLoader` or `LoaderPool`."""

    def next(self) -> FilledBatch:
        """The batch of the next step."""

    def close(self) -> None:
        """Release threads and processes."""


class Batches:
    """An iterator of `Batch`, one per step, prepared ahead by a thread. Close it, or use it as a context manager.

    Errors in preparing a batch are raised where that batch would have come. `steps`: the number of batches, None for
    endless. `max_quarantined`: images of an epoch that may be quarantined on this rank before a `DataError` is raised.
    """

    def __init__(
        self,
        loader: Loader,
        steps: int | None,
        max_quarantined: float,
        device: torch.device | None,
        description: str,
    ):
        self.waited = 0.0  # seconds that the consumer has waited for data
        self.quarantined: list[Quarantined] = []  # in the batches returned so far
        self.unknown: Counter[str] = Counter()  # conditions without a value in these batches: see `Account`
        self._max_quarantined = max_quarantined
        self._description = description
        self._ready: _Ready = queue.Queue(_AHEAD)
        stop = threading.Event()
        copier = _Copier(device) if device is not None and device.type == "cuda" else None
        arguments = (loader, steps, copier, self._ready, stop)
        thread = threading.Thread(target=_prepare, args=arguments, name="batches", daemon=True)
        # Runs at close, when the iterator is garbage-collected, or at exit before the interpreter shuts down.
        self._finish = weakref.finalize(self, _finish, thread, self._ready, stop, loader)
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
            if prepared.account.unknown:
                self.unknown += prepared.account.unknown
            if prepared.account.quarantined:
                self._record(prepared.account.quarantined)
            return prepared.on_current_stream()
        self.close()
        if prepared is None:
            raise StopIteration
        raise prepared

    def close(self) -> None:
        """Stop the thread and the loader processes."""
        self._finish()

    def describe(self) -> str:
        """One line about streams, windows, memory and processes."""
        return self._description

    def _record(self, entries: list[Quarantined]) -> None:
        self.quarantined += entries
        try:
            check_share(self.quarantined, self._max_quarantined)
        except DataError:
            self.close()
            raise


class _Prepared(NamedTuple):
    """A batch, and the CUDA event after which its copy is complete (None on a CPU)."""

    batch: Batch
    account: Account
    copied: torch.cuda.Event | None

    def on_current_stream(self) -> Batch:
        """The batch, for use by the current CUDA stream."""
        if self.copied is not None:
            stream = torch.cuda.current_stream(self.batch.images.device)
            stream.wait_event(self.copied)
            for tensor in self.batch.tensors():
                tensor.record_stream(stream)
        return self.batch


_Ready = queue.Queue[_Prepared | BaseException | None]


class _Copier:
    """Copies batches to a GPU in a stream of its own."""

    def __init__(self, device: torch.device):
        index = device.index if device.index is not None else torch.cuda.current_device()
        self._device = torch.device("cuda", index)
        new_stream: Callable[[torch.device], torch.cuda.Stream] = torch.cuda.Stream  # untyped in torch
        self._stream = new_stream(self._device)

    def enter_thread(self) -> None:
        """Make the rank's GPU current in this thread: pinning memory opens a context on the current one, else GPU 0."""
        torch.cuda.set_device(self._device)

    def copy(self, batch: Batch) -> tuple[Batch, torch.cuda.Event]:
        """The batch on the GPU, in the memory format it has, and the event that completes the copy."""
        pinned = batch.map(lambda tensor: tensor.pin_memory())  # no copy where it is pinned already
        with torch.cuda.stream(self._stream):
            there = pinned.map(lambda tensor: tensor.to(self._device, non_blocking=True))
            return there, self._stream.record_event()


def _prepare(loader: Loader, steps: int | None, copier: _Copier | None, ready: _Ready, stop: threading.Event) -> None:
    """Prepare batches until `stop`; the last item in the queue is an exception, or None at the end."""
    last: BaseException | None = None
    try:
        if copier:
            copier.enter_thread()
        for _ in itertools.count() if steps is None else range(steps):
            if stop.is_set():
                break
            _put(ready, _batch(loader.next(), copier), stop)
    except BaseException as error:
        last = error
    _put(ready, last, stop)


def _batch(filled: FilledBatch, copier: _Copier | None) -> _Prepared:
    positions, weights = torch.from_numpy(filled.positions), torch.from_numpy(filled.weights)
    batch, copied = Batch(filled.images, positions, weights, tensors_of(filled.conditions)), None
    if copier is not None:
        batch, copied = copier.copy(batch)
    if batch.images.dim() == 4:
        batch = batch._replace(images=batch.images.permute(0, 3, 1, 2))
    return _Prepared(batch, filled.account, copied)


def tensors_of(arrays: Arrays) -> dict[str, Tensor | Tokens]:
    """The conditions of a batch by name; the arrays NAME.ids and NAME.lengths make up one."""
    conditions: dict[str, Tensor | Tokens] = {}
    for name, array in arrays.items():
        whole, _, part = name.rpartition(".")
        if not whole:
            conditions[name] = torch.from_numpy(array)
        elif part == IDS:
            lengths = arrays[f"{whole}.{LENGTHS}"]
            conditions[whole] = Tokens(torch.from_numpy(array), torch.from_numpy(lengths))
    return conditions


def _put(ready: _Ready, item: _Prepared | BaseException | None, stop: threading.Event) -> None:
    while not stop.is_set():
        with contextlib.suppress(queue.Full):
            ready.put(item, timeout=0.1)
            return


def _finish(thread: threading.Thread, ready: _Ready, stop: threading.Event, loader: Loader) -> None:
    stop.set()
    with contextlib.suppress(queue.Empty):
        while True:
            ready.get_nowait()
    loader.close()
    thread.join(timeout=5)
