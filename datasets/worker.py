"""A loader process: decodes the pieces of its streams into shared memory.

Started by `datasets.workers` with two inherited file descriptors. It does not import torch, so that it is up in a
fraction of a second, and it ends when its parent does: the connection closes.
"""

from __future__ import annotations

import math
import mmap
import os
import queue
import signal
import sys
import threading
from multiprocessing.connection import Connection
from typing import NamedTuple

import numpy as np

from datasets.decode import Pixels
from datasets.ledger import Quarantined
from datasets.order import Integers
from datasets.work import Work


class Task(NamedTuple):
    """What a loader process is to do."""

    work: Work
    slots: int  # pieces that fit into the shared memory
    capacity: int  # images of a piece at most

    @property
    def slot_shape(self) -> tuple[int, ...]:
        """The shared memory is uint8 [slots, capacity, H, W, C]."""
        return (self.slots, self.capacity, *self.work.shape)


class Piece(NamedTuple):
    """A worker's part of a step; its images lie in a slot of the shared memory."""

    slot: int  # -1: there is nothing to read for this worker
    labels: Integers
    quarantined: list[Quarantined]


def slot_views(memory: mmap.mmap, task: Task) -> Pixels:
    """The shared memory as an array."""
    shape = task.slot_shape
    return np.frombuffer(memory, dtype=np.uint8, count=math.prod(shape)).reshape(shape)


def serve(connection: Connection, memory: mmap.mmap) -> None:
    """Send a `Piece` for every step, or the exception that ended the work."""
    task: Task = connection.recv()
    free = _slots_given_back(connection, task.slots)
    views = slot_views(memory, task)
    try:
        reader, schedule = task.work.reader(), task.work.schedule
        step = schedule.first
        while schedule.steps is None or step < schedule.steps:
            positions = schedule.positions(step)
            labels = np.zeros(len(positions), dtype=np.int64)
            slot = free.get() if len(positions) else -1
            quarantined = reader.read(positions, views[slot, : len(positions)], labels)
            connection.send(Piece(slot, labels, quarantined))
            step += 1
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        connection.send(error.with_traceback(None))
    threading.Event().wait()  # until the parent hangs up


def _slots_given_back(connection: Connection, slots: int) -> queue.SimpleQueue[int]:
    """The numbers of the slots that may be written, as the parent gives them back."""
    free: queue.SimpleQueue[int] = queue.SimpleQueue()
    for slot in range(slots):
        free.put(slot)

    def listen() -> None:
        try:
            while True:
                free.put(connection.recv())
        except (EOFError, OSError):
            os._exit(0)  # the parent has closed its end or is no more

    threading.Thread(target=listen, daemon=True).start()
    return free


def main() -> None:
    """What the process runs; its arguments are the descriptors of its connection and of the shared memory."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then hangs up
    connection, memory = (int(argument) for argument in sys.argv[1:3])
    try:
        serve(Connection(connection), mmap.mmap(memory, 0))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        os._exit(0)
