"""The parent's side of the loader processes."""

from __future__ import annotations

import math
import mmap
import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from datasets.decode import Pixels
from datasets.ledger import Quarantined
from datasets.order import Integers
from datasets.work import Work
from datasets.worker import Piece, Task, slot_views

_SLOTS = 3  # pieces that a worker may be ahead
# One image after another of the same size: memory that is freed is kept, not given back and faulted in again.
_SETTINGS = {"OMP_NUM_THREADS": "1", "MALLOC_TRIM_THRESHOLD_": "268435456", "MALLOC_MMAP_THRESHOLD_": "268435456"}
_MAIN = "from datasets.worker import main; main()"


class Worker:
    """One loader process."""

    def __init__(self, task: Task):
        self.schedule = task.work.schedule
        size = max(math.prod(task.slot_shape), 1)
        file = _shared_file(size)
        self._memory = mmap.mmap(file, size)
        self._views = slot_views(self._memory, task)
        self._connection, theirs = multiprocessing.Pipe()
        root = str(Path(__file__).parent.parent)
        paths = [root, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        environment = os.environ | _SETTINGS | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _MAIN, str(theirs.fileno()), str(file)],
                pass_fds=(theirs.fileno(), file),
                stdin=subprocess.DEVNULL,
                env=environment,
            )
        finally:
            theirs.close()
            os.close(file)
        self._connection.send(task)

    def fill(self, images: Pixels, labels: Integers, rows: Integers) -> list[Quarantined]:
        """Wait for the next piece and copy it to `rows` of a batch; what it quarantined.

        Raises what the process raised.
        """
        try:
            piece = self._connection.recv()
        except (EOFError, OSError):
            raise RuntimeError(f"a loader process ended unasked, with status {self._process.wait()}") from None
        if not isinstance(piece, Piece):
            raise piece
        if piece.slot >= 0:
            images[rows] = self._views[piece.slot, : len(rows)]
            labels[rows] = piece.labels
            self._connection.send(piece.slot)
        return piece.quarantined

    def close(self) -> None:
        """End the process, which holds nothing that could be lost."""
        self._process.kill()
        self._process.wait()
        self._connection.close()


class WorkerPool:
    """The loader processes of a rank: each has some of its streams, and all answer for every step."""

    def __init__(self, work: Work, workers: int):
        self._schedule = work.schedule
        self._workers: list[Worker] = []
        try:
            for part in work.split(workers):
                self._workers.append(Worker(Task(part, _SLOTS, part.schedule.largest)))
        except BaseException:
            self.close()
            raise

    def fill(self, step: int, images: Pixels, labels: Integers) -> list[Quarantined]:
        """The images and labels of the positions of a step, in their order. Steps are asked for one after another."""
        positions = self._schedule.positions(step)
        quarantined = []
        for worker in self._workers:
            rows = np.searchsorted(positions, worker.schedule.positions(step))
            quarantined += worker.fill(images, labels, rows)
        return quarantined

    def close(self) -> None:
        for worker in self._workers:
            worker.close()
        self._workers.clear()


def _shared_file(size: int) -> int:
    """A file descriptor of memory without a name: nothing is left behind, whatever dies."""
    if hasattr(os, "memfd_create"):  # not bound by the size of /dev/shm, which containers keep small
        file = os.memfd_create("loader")
    else:
        with tempfile.TemporaryFile() as temporary:
            file = os.dup(temporary.fileno())
    os.ftruncate(file, size)
    os.set_inheritable(file, True)
    return file
