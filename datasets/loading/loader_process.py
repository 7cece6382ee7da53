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
from multiprocessing.connection import Connection
from typing import NamedTuple

import numpy as np

from datasets.quarantine import Quarantined
from datasets.reading.step_reader import BatchArrays, ReadPlan, StepReader


class Assignment(NamedTuple):
    """What the parent sends first."""

    plan: ReadPlan
    slots: int  # batches in the shared memory
    size: int  # images of a batch, padding included


def slot_bytes(size: int, shape: tuple[int, int, int]) -> int:
    """Bytes of a batch of `size` images in the shared memory, a multiple of 8 so that all are aligned."""
    return -(-size * (20 + math.prod(shape)) // 8) * 8  # 20: label, position and weight


def slots_in(memory: mmap.mmap, slots: int, size: int, shape: tuple[int, int, int]) -> list[BatchArrays]:
    """The batches in the shared memory as arrays."""
    batches = []
    for slot in range(slots):
        start = slot * slot_bytes(size, shape)
        labels, positions = np.frombuffer(memory, np.int64, 2 * size, start).reshape(2, size)
        weights = np.frombuffer(memory, np.float32, size, start + 16 * size)
        images = np.frombuffer(memory, np.uint8, size * math.prod(shape), start + 20 * size)
        batches.append(BatchArrays(images.reshape(size, *shape), labels, positions, weights))
    return batches


def serve(connection: Connection, memory: mmap.mmap) -> None:
    """Read one step after another into the slots that the parent names.

    For every step, send the list of quarantined images, or the exception that ended the work.
    """
    try:
        assignment: Assignment = connection.recv()  # opens the index
        plan = assignment.plan
        slots = slots_in(memory, assignment.slots, assignment.size, plan.shape)
        reader = StepReader(plan)
        step = plan.steps.first
        while plan.steps.end is None or step < plan.steps.end:
            slot: int = connection.recv()
            quarantined: list[Quarantined] = reader.read(slots[slot])
            connection.send(quarantined)
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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and closes its ends
    connection, lifeline, memory = (int(argument) for argument in sys.argv[1:4])
    _exit_with_parent(lifeline)
    try:
        serve(Connection(connection), mmap.mmap(memory, 0))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        os._exit(0)
