"""The parent's side of the loader processes.

The batches of a rank are slots of shared memory. Every loader process decodes into its rows of a slot, and the consumer
gets a tensor over the slot: between the decoder and the model no image is copied on the host.
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
from collections import Counter, deque
from pathlib import Path

import torch

from datasets.loading.batches import FilledBatch
from datasets.loading.loader_process import Assignment, Slots
from datasets.reading.step_reader import Account, ReadPlan

_FILLING = 3  # slots that the processes have at least
_CONSUMED = 5  # slots the consumer may hold: two queued, one being handed over, the last one and the one before it
# Images of one size follow each other: keep freed memory instead of returning it and faulting it in again.
_SETTINGS = {"OMP_NUM_THREADS": "1", "MALLOC_TRIM_THRESHOLD_": "268435456", "MALLOC_MMAP_THRESHOLD_": "268435456"}
_MAIN = "from datasets.loading.loader_process import main; main()"


class LoaderProcess:
    """A handle to one loader process."""

    def __init__(self, assignment: Assignment, memory: int):
        """`memory` is the descriptor of the shared memory."""
        self._connection, theirs = multiprocessing.Pipe()
        their_end, self._lifeline = os.pipe()  # closes with this process, however it ends
        root = str(Path(__file__).parents[2])
        paths = [root, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        environment = os.environ | _SETTINGS | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        descriptors = (theirs.fileno(), their_end, memory)
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
            os.close(their_end)
        self._connection.send(assignment)

    def fill(self, slot: int) -> None:
        """Ask for its next step in this slot."""
        with contextlib.suppress(OSError):  # if the process has exited, `filled` says so
            self._connection.send(slot)

    def filled(self) -> Account:
        """Wait for its next step; return what its images lacked. Raises what the process raised."""
        try:
            answer: Account | BaseException = self._connection.recv()
        except (EOFError, OSError):
            code = self._process.wait()
            raise RuntimeError(f"a loader process exited unexpectedly (exit code {code})") from None
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def close(self) -> None:
        """Kill the process, which holds nothing that could be lost."""
        self._process.kill()
        self._process.wait()
        self._connection.close()
        os.close(self._lifeline)


class LoaderPool:
    """The loader processes of a rank: each reads a share of every step (training) or every n-th step (evaluation)."""

    def __init__(self, plan: ReadPlan, processes: int):
        slots, layout = _FILLING + _CONSUMED, Slots(plan)
        length = slots * layout.bytes
        file = _shared_file(length)
        self._slots = layout.arrays(mmap.mmap(file, length), slots)
        self._filling: deque[int] = deque()  # slots of the next steps
        self._free: queue.SimpleQueue[int] = queue.SimpleQueue()  # filled by finalizers, in any thread
        self._processes: list[LoaderProcess] = []
        try:
            for share in plan.split(processes):
                self._processes.append(LoaderProcess(Assignment(share, slots), file))
        except BaseException:
            self.close()
            raise
        finally:
            os.close(file)
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
