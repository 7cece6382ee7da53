"""A loader process: decodes its share of every batch of a rank, in shared memory.

Started by `datasets.loading.loader_pool` with inherited file descriptors. It does not import torch, so it starts in a
fraction of a second. It exits with its parent, when a pipe closes.
"""

from __future__ import annotations

import math
import mmap
import os
import signal
import sys
import threading
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datasets.conditions.condition import Field
from datasets.reading.step_reader import BatchArrays, ReadPlan, StepReader

HANDLED_BY_PARENT = {
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGUSR1,
}  # requests to stop: to all of a group


class Assignment(NamedTuple):
    """What the parent sends first."""

    plan: ReadPlan
    slots: int  # batches in the shared memory

    def after(self, steps: int) -> Assignment:
        """The same without the first steps."""
        return self._replace(plan=replace(self.plan, skip=self.plan.skip + steps))


class Slots:
    """Batches in shared memory, as arrays over it."""

    def __init__(self, plan: ReadPlan):
        self._fields = {
            "images": Field(np.dtype(np.uint8), plan.shape),
            "positions": Field(np.dtype(np.int64), ()),
            "weights": Field(np.dtype(np.float32), ()),
        } | {f"conditions/{name}": field for name, field in plan.layout.items()}
        self._size = plan.steps.size

    @property
    def bytes(self) -> int:
        """Of one batch."""
        return sum(self._bytes(field) for field in self._fields.values())

    def arrays(self, memory: mmap.mmap, slots: int) -> list[BatchArrays]:
        """The first `slots` batches."""
        return [self._arrays(memory, slot * self.bytes) for slot in range(slots)]

    def _bytes(self, field: Field) -> int:
        """Of all rows of an array: a multiple of 8, so that every array is aligned."""
        return -(-self._size * field.dtype.itemsize * math.prod(field.shape) // 8) * 8

    def _arrays(self, memory: mmap.mmap, start: int) -> BatchArrays:
        arrays: dict[str, NDArray[Any]] = {}
        for name, field in self._fields.items():
            flat = np.frombuffer(memory, field.dtype, self._size * math.prod(field.shape), start)
            arrays[name] = flat.reshape(self._size, *field.shape)
            start += self._bytes(field)
        conditions = {name.removeprefix("conditions/"): array for name, array in arrays.items() if "/" in name}
        return BatchArrays(arrays["images"], arrays["positions"], arrays["weights"], conditions)


def serve(connection: Connection, memory: mmap.mmap) -> None:
    """Read one step after another into the slots that the parent names.

    For every step, send what its images lacked (`Account`), or the exception that ended the work.
    """
    try:
        assignment: Assignment = connection.recv()  # opens the index
        plan = assignment.plan
        slots = Slots(plan).arrays(memory, assignment.slots)
        reader = StepReader(plan)
        step = plan.steps.first + plan.skip
        while plan.steps.end is None or step < plan.steps.end:
            slot: int = connection.recv()
            connection.send(reader.read(slots[slot]))
            step += 1
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        connection.send(error.with_traceback(None))
    threading.Event().wait()  # until the parent closes its end


def _exit_with_parent(lifeline: int) -> None:
    """End this process, whatever it waits for, as soon as the parent's end of a pipe closes."""

    def watch() -> None:
        os.read(lifeline, 1)
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    """Entry point. Arguments are file descriptors: connection, lifeline, shared memory."""
    for number in HANDLED_BY_PARENT:
        signal.signal(number, signal.SIG_IGN)
    connection, lifeline, memory = (int(argument) for argument in sys.argv[1:4])
    _exit_with_parent(lifeline)
    try:
        serve(Connection(connection), mmap.mmap(memory, 0))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        os._exit(0)
