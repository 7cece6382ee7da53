"""The parent's side of the loader processes.

The batches of a rank are slots of shared memory. Every loader process decodes into its rows of a slot, and the consumer
gets a tensor over the slot: between the decoder and the model no image is copied on the host.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import multiprocessing
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from collections import Counter, deque
from pathlib import Path

import torch

from datasets.errors import DataError
from datasets.loading.batches import FilledBatch
from datasets.loading.loader_process import HANDLED_BY_PARENT, Assignment, Slots
from datasets.reading.step_reader import Account, ReadPlan

_FILLING = 3  # slots that the processes have at least
_CONSUMED = 5  # slots the consumer may hold: two queued, one being handed over, the last one and the one before it
# Images of one size follow each other: keep freed memory instead of returning it and faulting it in again.
_SETTINGS = {"OMP_NUM_THREADS": "1", "MALLOC_TRIM_THRESHOLD_": "268435456", "MALLOC_MMAP_THRESHOLD_": "268435456"}
_KILLS = 3  # in a row, which end the work
_MAIN = "from datasets.loading.loader_process import main; main()"


logger = logging.getLogger(__name__)


class LoaderProcess:
    """A handle to one loader process, which is started again where it was if it is killed."""

    def __init__(self, assignment: Assignment, memory: int):
        """`memory` is the descriptor of the shared memory, open until `close`."""
        self._assignment, self._memory = assignment, memory
        self._asked: deque[int] = deque()  # slots of steps that have not been answered
        self._answered = 0
        self._kills = 0  # since the last answer
        self._closed = False
        self._lock = threading.Lock()  # `close` may be called by another thread
        self._start()

    def _start(self) -> None:
        self._connection, theirs = multiprocessing.Pipe()
        their_end, self._lifeline = os.pipe()  # closes with this process, however it ends
        root = str(Path(__file__).parents[2])
        paths = [root, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        environment = os.environ | _SETTINGS | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        descriptors = (theirs.fileno(), their_end, self._memory)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED_BY_PARENT)  # inherited until it ignores them
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _MAIN, *map(str, descriptors)],
                pass_fds=descriptors,
                stdin=subprocess.DEVNULL,
                env=environment,
            )
        except BaseException:
            self._release()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()
            os.close(their_end)
        with contextlib.suppress(OSError):  # if the process has exited, `filled` notices
            self._connection.send(self._assignment.after(self._answered))
            for slot in self._asked:
                self._connection.send(slot)

    def fill(self, slot: int) -> None:
        """Ask for its next step in this slot."""
        self._asked.append(slot)
        with contextlib.suppress(OSError):  # if the process has exited, `filled` notices
            self._connection.send(slot)

    def filled(self) -> Account:
        """Wait for its next step; return what its images lacked. Raises what the process raised.

        Raises DataError if the process was killed `_KILLS` times at this step.
        """
        while True:
            try:
                answer: Account | BaseException = self._connection.recv()
                break
            except (EOFError, OSError):
                self._start_again()
        if isinstance(answer, BaseException):
            raise answer
        self._asked.popleft()
        self._answered += 1
        self._kills = 0
        return answer

    def _start_again(self) -> None:
        code = self._process.wait()
        with self._lock:
            if self._closed or code >= 0:  # its traceback is on stderr
                raise RuntimeError(f"a loader process exited unexpectedly (exit code {code})")
            self._kills += 1
            killed = f"a loader process was killed ({signal.Signals(-code).name})"
            if self._kills == _KILLS:
                raise DataError(
                    f"{killed} {_KILLS} times in a row, as the kernel does where memory runs out; fewer data.workers "
                    "or a smaller data.memory need less"
                )
            logger.warning("%s and is started again where it was (%d of %d)", killed, self._kills, _KILLS)
            self._release()
            self._start()

    def close(self) -> None:
        """Kill the process, which holds nothing that could be lost."""
        with self._lock:
            self._closed = True
            self._process.kill()
            self._process.wait()
            self._release()

    def _release(self) -> None:
        self._connection.close()
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1


class LoaderPool:
    """The loader processes of a rank: each reads a share of every step (training) or every n-th step (evaluation)."""

    def __init__(self, plan: ReadPlan, processes: int):
        slots, layout = _FILLING + _CONSUMED, Slots(plan)
        length = slots * layout.bytes
        self._file = _shared_file(length)  # for processes that are started again
        self._slots = layout.arrays(mmap.mmap(self._file, length), slots)
        self._filling: deque[int] = deque()  # slots of the next steps
        self._free: queue.SimpleQueue[int] = queue.SimpleQueue()  # filled by finalizers, in any thread
        self._processes: list[LoaderProcess] = []
        try:
            for share in plan.split(processes):
                self._processes.append(LoaderProcess(Assignment(share, slots), self._file))
        except BaseException:
            self.close()
            raise
        for slot in range(slots):
            self._free.put(slot)

    def next(self) -> FilledBatch:
        """The batch of the next step."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._filling.append(slot := self._free.get_nowait())
                for process in self._processes:
                    process.fill(slot)
        accounts = [process.filled() for process in self._processes]
        quarantined = [entry for account in accounts for entry in account.quarantined]
        unknown = sum((account.unknown for account in accounts), Counter[str]())
        return self._filled(self._filling.popleft(), Account(quarantined, unknown))

    def close(self) -> None:
        for process in self._processes:
            process.close()
        self._processes.clear()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _filled(self, slot: int, account: Account) -> FilledBatch:
        """The batch in a slot, which is reused when the images' memory is released.

        A consumer that keeps many batches gets copies, so that the processes need not wait for it.
        """
        images, positions, weights, conditions = self._slots[slot]
        copies = positions.copy(), weights.copy(), {name: array.copy() for name, array in conditions.items()}
        if len(self._filling) + self._free.qsize() < _FILLING:
            images = images.copy()
            self._free.put(slot)
        else:
            images = images.view()  # a new object, which the tensor keeps alive
            weakref.finalize(images, self._free.put, slot).atexit = False
        return FilledBatch(torch.from_numpy(images), *copies, account)


def _shared_file(size: int) -> int:
    """A file descriptor of anonymous memory: nothing is left behind, however the processes end."""
    if hasattr(os, "memfd_create"):  # not limited by the size of /dev/shm, which is small in containers
        file = os.memfd_create("loader")
    else:
        with tempfile.TemporaryFile() as temporary:
            file = os.dup(temporary.fileno())
    os.ftruncate(file, size)
    os.set_inheritable(file, True)
    return file
