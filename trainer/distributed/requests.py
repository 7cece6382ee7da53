"""Requests to stop or to save, and how all ranks come to act on them after the same step."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from trainer.distributed.interruption import StopRequestedError, interruptible
from trainer.distributed.ranks import rank, world_size
from trainer.errors import TrainingError

T = TypeVar("T")

POLL_SECONDS = 0.25  # between two exchanges of the ranks, about
NOTICE_SECONDS = 4.0  # between two looks for a notice of preemption, about

_RUNNING, _DONE, _INTERRUPTED, _FAILED = range(4)  # rank 0 while it leads


class Requests:
    """What this process has been asked to do. The null object: nothing. All methods are cheap and never block, but
    `notice`, which may be a collective."""

    def stop(self) -> bool:
        """Commit and exit."""
        return False

    def save(self) -> bool:
        """Commit soon and continue; true once a request."""
        return False

    def notice(self) -> bool:
        """Commit and exit because a machine of the run is about to be taken away; asked by all ranks together."""
        return False


class Agreement:
    """The requests of all ranks, known to each of them after the same step, without a collective a step.

    Every few steps the ranks start a small all-reduce and read it at the next exchange, when it has long arrived. Rank
    0 chooses the number of steps between two exchanges (POLL_SECONDS' worth) and sends it along.
    """

    def __init__(self, device: torch.device, requests: Requests):
        self.device, self.requests = device, requests
        self.stop = False
        """A rank was asked to stop; stays true."""
        self.save = False
        """A rank was asked to save since `save` was last set to False."""
        self.written = 0
        """Checkpoints that every rank has written, or failed to write."""
        self._written_here = 0
        self._exchanges, self._noticed = 0, time.monotonic()
        self._stop_here = self._save_unsent = False
        self._message: Tensor | None = None
        self._pending: dist.Work | None = None
        self._steps_left, self._interval = 1, 1
        self._last = time.monotonic()

    def poll(self, written: int) -> bool:
        """Called on every rank after each step, with the number of checkpoints that this rank has written so far.

        Updates `stop`, `save` and `written`, all the same on every rank. Returns `stop`.
        """
        self._written_here = written
        self._save_unsent |= self.requests.save()
        return self.interrupted()

    def interrupted(self) -> bool:
        """Whether a stop was requested; called on every rank the same number of times, also between steps."""
        self._stop_here |= self.requests.stop()
        if world_size() == 1:
            self.written, self.save, self._save_unsent = self._written_here, self.save or self._save_unsent, False
            self.stop |= self._stop_here or self._notice(time.monotonic() - self._noticed > NOTICE_SECONDS)
            return self.stop
        self._steps_left -= 1
        if self._steps_left == 0:
            self._exchange()
        return self.stop

    def _exchange(self) -> None:
        now = time.monotonic()
        steps_a_second = self._interval / max(now - self._last, 1e-6)
        self._last = now
        if self._pending is not None and self._message is not None:
            self._pending.wait()
            stops, interval, not_written, saves = self._message.tolist()
            self.stop |= stops > 0
            self.save |= saves > 0
            self.written, self._interval = -round(not_written), round(interval)
        proposal = min(max(round(POLL_SECONDS * steps_a_second), 1), 1000) if rank() == 0 else 0
        self._exchanges += 1
        self._stop_here |= self._notice(self._exchanges % round(NOTICE_SECONDS / POLL_SECONDS) == 0)
        values = [self._stop_here, proposal, -self._written_here, self._save_unsent]
        self._message = torch.tensor(values, dtype=torch.float64, device=self.device)
        self._save_unsent = False
        self._pending = dist.all_reduce(self._message, dist.ReduceOp.MAX, async_op=True)
        self._steps_left = self._interval

    def _notice(self, due: bool) -> bool:
        if not due:
            return False
        self._noticed = time.monotonic()
        return self.requests.notice()

    # ---- long work between steps

    def together(self, action: Callable[[], T]) -> T | None:
        """Run `action` on all ranks, with the same number of interruption points; None where a stop was requested."""
        return self._interruptible(action, self.interrupted)

    def lead(self, action: Callable[[], T]) -> T | None:
        """Run `action` on rank 0 while the others wait for it; None on them, and where a stop was requested meanwhile.

        A request on any rank reaches rank 0 at its next interruption point. All ranks together. Raises what `action`
        raises, on the others a TrainingError.
        """
        if world_size() == 1:
            return self._interruptible(action, self._stop_requested)
        if rank() == 0:
            status = _FAILED
            try:
                result = self._interruptible(action, self._stop_requested_by_any)
                status = _INTERRUPTED if self.stop else _DONE
            finally:
                self._all_max(status)
            return result
        while (status := self._all_max(_RUNNING)) == _RUNNING:
            pass
        if status == _FAILED:
            raise TrainingError("rank 0 failed while the others waited for it")
        return None

    def _interruptible(self, action: Callable[[], T], check: Callable[[], bool]) -> T | None:
        try:
            with interruptible(check):
                return action()
        except StopRequestedError:
            return None

    def _stop_requested(self) -> bool:
        self._stop_here |= self.requests.stop()
        self.stop |= self._stop_here
        return self.stop

    def _stop_requested_by_any(self) -> bool:
        """On rank 0, at interruption points; exchanges with the waiting ranks every POLL_SECONDS."""
        if not self.stop and time.monotonic() - self._last > POLL_SECONDS:
            self._all_max(_RUNNING)
            self._last = time.monotonic()
        return self.stop

    def _all_max(self, status: int) -> int:
        self._stop_here |= self.requests.stop()
        message = torch.tensor([status, self._stop_here], dtype=torch.float64, device=self.device)
        dist.all_reduce(message, dist.ReduceOp.MAX)
        of_any, stop = message.tolist()
        self.stop |= stop > 0
        return int(of_any)
