"""The parent's side of the loader processes.

The batches of a rank lie in slots of shared memory. Every loader process decodes into its rows of a slot, and the
consumer is lent the slot itself: between the decoder and the model an image of some hundred kilobytes is not copied.
"""

from __future__ import annotations

import contextlib
import mmap
import multiprocessing
import os
import queue
import subprocess
import sys
import tempfile
import weakref
from collections import deque
from pathlib import Path

import torch
from torch import Tensor

from datasets.loading.loader_process import Slots, Task
from datasets.loading.reader_task import Work
from datasets.order.order import Integers
from datasets.quarantine import Quarantined

_BEING_FILLED = 3  # slots that the workers have at least
_LENT = 5  # and that the consumer may hold: two that wait, one being handed over, the last one and the one before it
# One image after another of the same size: memory that is freed is kept, not given back and faulted in again.
_SETTINGS = {"OMP_NUM_THREADS": "1", "MALLOC_TRIM_THRESHOLD_": "268435456", "MALLOC_MMAP_THRESHOLD_": "268435456"}
_MAIN = "from datasets.loading.loader_process import main; main()"


class Worker:
    """One loader process."""

    def __init__(self, task: Task, memory: int):
        """`memory` is the descriptor of the shared memory."""
        self._connection, theirs = multiprocessing.Pipe()
        its_end, self._lifeline = os.pipe()  # it ends when this end closes, if only because this process is no more
        root = str(Path(__file__).parents[2])
        paths = [root, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        environment = os.environ | _SETTINGS | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        descriptors = (theirs.fileno(), its_end, memory)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _MAIN, *map(str, descriptors)],
                pass_fds=descriptors,
                stdin=subprocess.DEVNULL,
                env=environment,
            )
        except BaseException:
            os.close(self._lifeline)
            raise
        finally:
            theirs.close()
            os.close(its_end)
        self._connection.send(task)

    def fill(self, slot: int) -> None:
        """Let its next step be written to this slot."""
        with contextlib.suppress(OSError):  # if it is no more, `filled` says so
            self._connection.send(slot)

    def filled(self) -> list[Quarantined]:
        """Wait for the end of its next step; what was quarantined in it. Raises what the process raised."""
        try:
            answer = self._connection.recv()
        except (EOFError, OSError):
            raise RuntimeError(f"a loader process ended unasked, with status {self._process.wait()}") from None
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def close(self) -> None:
        """End the process, which holds nothing that could be lost."""
        self._process.kill()
        self._process.wait()
        self._connection.close()
        os.close(self._lifeline)


class WorkerPool:
    """The loader processes of a rank: each has some of its streams, and all answer for every step."""

    def __init__(self, work: Work, workers: int, size: int):
        """`size` is the number of images of a batch, padding included."""
        shape = (_BEING_FILLED + _LENT, size, *work.shape)
        size_of_slots = Slots.bytes(shape)
        file = _shared_file(size_of_slots)
        self._slots = Slots.view(mmap.mmap(file, size_of_slots), shape)
        self._filling: deque[int] = deque()  # slots of the next steps
        self._free: queue.SimpleQueue[int] = queue.SimpleQueue()  # filled by finalizers, in any thread
        self._workers: list[Worker] = []
        try:
            for part in work.split(workers):
                self._workers.append(Worker(Task(part, work.schedule, shape), file))
        except BaseException:
            self.close()
            raise
        finally:
            os.close(file)
        for slot in range(shape[0]):
            self._free.put(slot)

    def fill(self, step: int, labels: Integers) -> tuple[Tensor, list[Quarantined]]:
        """As `Filler.fill`. Steps are asked for one after another."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._filling.append(slot := self._free.get_nowait())
                for worker in self._workers:
                    worker.fill(slot)
        quarantined = [entry for worker in self._workers for entry in worker.filled()]
        slot = self._filling.popleft()
        labels[:] = self._slots.labels[slot, : len(labels)]
        return self._lent(slot), quarantined

    def close(self) -> None:
        for worker in self._workers:
            worker.close()
        self._workers.clear()

    def _lent(self, slot: int) -> Tensor:
        """A slot as a tensor, which may be written anew once the tensor's memory is let go of.

        A consumer that keeps many batches is given copies: the workers do not wait for it.
        """
        view = self._slots.images[slot]
        if len(self._filling) + self._free.qsize() < _BEING_FILLED:
            self._free.put(slot)
            return torch.from_numpy(view.copy())
        weakref.finalize(view, self._free.put, slot).atexit = False
        return torch.from_numpy(view)


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
