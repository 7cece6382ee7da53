"""A loader process: decodes the images of its streams into their rows of the batches of its rank, in shared memory.

Started by `datasets.loading.process_pool` with inherited file descriptors. It does not import torch, so it starts in a
fraction of a second, and it exits with its parent, when a pipe closes.
"""

from __future__ import annotations

import math
import mmap
import os
import signal
import sys
import threading
from multiprocessing.connection import Connection
from typing import NamedTuple

import numpy as np

from datasets.loading.reader_task import Work
from datasets.order.order import Integers
from datasets.order.schedule import Schedule
from datasets.quarantine import Quarantined
from datasets.reading.decode import Pixels

_LABEL = np.dtype(np.int64)


class Task(NamedTuple):
    """What a loader process is to do."""

    work: Work
    rank: Schedule  # of the whole rank, whose positions are the rows of a batch
    shape: tuple[int, ...]  # (slots, images of a batch, H, W, C) of the shared memory


class Slots(NamedTuple):
    """Batches in shared memory: one axis more than images and labels of a batch have."""

    images: Pixels  # uint8 [slots, n, H, W, C]
    labels: Integers  # int64 [slots, n]

    @staticmethod
    def bytes(shape: tuple[int, ...]) -> int:
        """The memory that they need."""
        return math.prod(shape[:2]) * _LABEL.itemsize + math.prod(shape)

    @classmethod
    def view(cls, memory: mmap.mmap, shape: tuple[int, ...]) -> Slots:
        """The shared memory as arrays; the labels come first, where they are aligned."""
        labels = np.frombuffer(memory, dtype=_LABEL, count=math.prod(shape[:2])).reshape(shape[:2])
        images = np.frombuffer(memory, dtype=np.uint8, count=math.prod(shape), offset=labels.nbytes)
        return cls(images.reshape(shape), labels)


def serve(connection: Connection, memory: mmap.mmap) -> None:
    """Fill this process's rows of one slot after another, as the parent names them.

    For every step it sends what was quarantined in it, or the exception that ended the work.
    """
    try:
        task: Task = connection.recv()  # opens the index
        slots = Slots.view(memory, task.shape)
        reader, schedule = task.work.reader(), task.work.schedule
        step = schedule.first
        while schedule.steps is None or step < schedule.steps:
            positions = schedule.positions(step)
            rows = np.searchsorted(task.rank.positions(step), positions)
            slot: int = connection.recv()
            quarantined: list[Quarantined] = reader.read_to(rows, positions, slots.images[slot], slots.labels[slot])
            connection.send(quarantined)
            step += 1
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        connection.send(error.with_traceback(None))
    threading.Event().wait()  # until the parent hangs up


def _leave_with(lifeline: int) -> None:
    """End this process, whatever it waits for, as soon as the parent lets go of the other end of a pipe."""

    def watch() -> None:
        os.read(lifeline, 1)
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    """What the process runs; its arguments are descriptors: connection, lifeline, shared memory."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then hangs up
    connection, lifeline, memory = (int(argument) for argument in sys.argv[1:4])
    _leave_with(lifeline)
    try:
        serve(Connection(connection), mmap.mmap(memory, 0))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        os._exit(0)
