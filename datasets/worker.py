"""A loader process: decodes the images of its streams into their rows of the batches of its rank, in shared memory.

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
from datasets.schedule import Schedule
from datasets.work import Work


class Task(NamedTuple):
    """What a loader process is to do."""

    work: Work
    rank: Schedule  # of the whole rank, whose positions are the rows of a batch
    memory: tuple[int, ...]  # the shared memory is uint8 [slots, images of a batch, H, W, C]


class Piece(NamedTuple):
    """A worker's part of a step; its images lie in the slot that the parent has named for the step."""

    rows: Integers  # of the batch
    labels: Integers
    quarantined: list[Quarantined]


def slot_views(memory: mmap.mmap, shape: tuple[int, ...]) -> Pixels:
    """The shared memory as an array."""
    return np.frombuffer(memory, dtype=np.uint8, count=math.prod(shape)).reshape(shape)


def serve(connection: Connection, memory: mmap.mmap) -> None:
    """Send a `Piece` for every step, or the exception that ended the work. The parent sends a slot for every step."""
    slots: queue.SimpleQueue[int] | None = None
    try:
        task: Task = connection.recv()  # opens the index
        slots = _slots_of_steps(connection)
        views = slot_views(memory, task.memory)
        reader, schedule = task.work.reader(), task.work.schedule
        labels = np.empty(task.memory[1], dtype=np.int64)
        step = schedule.first
        while schedule.steps is None or step < schedule.steps:
            positions = schedule.positions(step)
            rows = np.searchsorted(task.rank.positions(step), positions)
            quarantined = reader.read_to(rows, positions, views[slots.get()], labels)
            connection.send(Piece(rows, labels[rows], quarantined))
            step += 1
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        connection.send(error.with_traceback(None))
        slots = slots or _slots_of_steps(connection)
    threading.Event().wait()  # until the parent hangs up


def _slots_of_steps(connection: Connection) -> queue.SimpleQueue[int]:
    """The slots that are to be written, one step after another, as the parent names them."""
    slots: queue.SimpleQueue[int] = queue.SimpleQueue()

    def listen() -> None:
        try:
            while True:
                slots.put(connection.recv())
        except (EOFError, OSError):
            os._exit(0)  # the parent has closed its end or is no more

    threading.Thread(target=listen, daemon=True).start()
    return slots


def main() -> None:
    """What the process runs; its arguments are the descriptors of its connection and of the shared memory."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then hangs up
    connection, memory = (int(argument) for argument in sys.argv[1:3])
    try:
        serve(Connection(connection), mmap.mmap(memory, 0))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        os._exit(0)
