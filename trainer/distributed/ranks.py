"""The few things that ranks must do together."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from trainer.errors import TrainingError

T = TypeVar("T")

POLL_SECONDS = 0.25  # how often, about, the ranks ask one another whether to stop
NOTICE_SECONDS = 4.0  # how often, about, they ask whether the machine of one is about to go


def world_size() -> int:
    """The number of ranks; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process's place among the ranks; 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def all_reduce_sum(values: Tensor) -> Tensor:
    """The sum over the ranks of a tensor, which is left as it is."""
    total = values.clone()
    if world_size() > 1:
        dist.all_reduce(total)
    return total


def new_gloo_group(seconds: float) -> dist.ProcessGroup | None:
    """A process group of all ranks for a background thread of each, whose waits end after `seconds`; None if alone."""
    if world_size() == 1:
        return None
    return dist.new_group(backend="gloo", timeout=timedelta(seconds=seconds))


def gather_object(mine: T, group: dist.ProcessGroup | None) -> list[T]:
    """What each rank has, in a list on rank 0; empty on the others."""
    if group is None:
        return [mine]
    parts: list[T] | None = [mine] * world_size() if rank() == 0 else None
    dist.gather_object(mine, parts, dst=0, group=group)
    return parts or []


def broadcast_object(word: T, group: dist.ProcessGroup | None) -> T:
    """What rank 0 has, on every rank."""
    if group is None:
        return word
    box = [word]
    dist.broadcast_object_list(box, src=0, group=group)
    return box[0]


def on_rank_zero(action: Callable[[], T]) -> T:
    """Run `action` on rank 0 and give its result to every rank; an error of rank 0 is raised by all of them."""
    if world_size() == 1:
        return action()
    outcome: list[object] = [None, None]
    failure: Exception | None = None
    if rank() == 0:
        try:
            outcome[0] = action()
        except Exception as error:
            failure, outcome[1] = error, str(error)
    dist.broadcast_object_list(outcome, src=0)
    if failure is not None:
        raise failure
    if outcome[1] is not None:
        raise TrainingError(str(outcome[1]))
    return outcome[0]  # type: ignore[return-value]


def shutdown() -> None:
    """Leave the process group, all ranks together, and end its threads; nothing happens without one.

    A thread of gloo that still holds a tensor when the interpreter takes itself down would abort the process, after all
    work was done ("terminate called without an active exception").
    """
    if not dist.is_initialized():
        return
    with contextlib.suppress(RuntimeError):  # another rank has gone without a word: that is its failure
        dist.barrier()
    dist.destroy_process_group()
    gc.collect()  # what is left of the group in cycles; with the last reference its threads are joined


class Agreement:
    """What all ranks know at the same step, without a collective a step: whether any of them wants to stop or to save,
    and how many checkpoints every one of them has written.

    Every few steps the ranks start a small all-reduce and read it at the next turn, when it has long arrived. Rank 0
    chooses how many steps lie between the turns (a quarter of a second's worth) and sends that along.
    """

    def __init__(self, device: torch.device, notice: Callable[[], bool] | None = None):
        """`notice` is asked every NOTICE_SECONDS, about, by all ranks at the same step: another wish to stop."""
        self.device, self.notice = device, notice
        self.turns, self.asked = 0, time.monotonic()
        self.save, self.unsaid = False, False
        self.message: Tensor | None = None
        self.pending: dist.Work | None = None
        self.written = 0
        self.steps_left, self.interval = 1, 1
        self.last = time.monotonic()

    def reached(self, wish: bool, written: int = 0, save: bool = False) -> bool:
        """Called once a step on every rank with its own wishes to stop and to save and its number of checkpoints
        written. Whether to stop; `self.save` says whether to save, and `self.written` how many checkpoints all ranks
        have written. All are the same on every rank.
        """
        if world_size() == 1:
            self.written, self.save = written, save
            return wish or self._noticed(time.monotonic() - self.asked > NOTICE_SECONDS)
        self.save = False
        self.unsaid = self.unsaid or save  # a wish between the turns waits for the next one
        self.steps_left -= 1
        if self.steps_left > 0:
            return False
        now = time.monotonic()
        pace = self.interval / max(now - self.last, 1e-6)  # steps a second since the last turn
        self.last = now
        agreed = False
        if self.pending is not None and self.message is not None:
            self.pending.wait()
            wishes, interval, not_written, saves = self.message.tolist()
            agreed, self.written, self.save, self.interval = wishes > 0, -round(not_written), saves > 0, round(interval)
        proposal = min(max(round(POLL_SECONDS * pace), 1), 1000) if rank() == 0 else 0
        self.turns += 1
        wish |= self._noticed(self.turns % round(NOTICE_SECONDS / POLL_SECONDS) == 0)
        self.message = torch.tensor([wish, proposal, -written, self.unsaid], dtype=torch.float64, device=self.device)
        self.unsaid = False
        self.pending = dist.all_reduce(self.message, dist.ReduceOp.MAX, async_op=True)
        self.steps_left = self.interval
        return agreed

    def _noticed(self, due: bool) -> bool:
        if not due or self.notice is None:
            return False
        self.asked = time.monotonic()
        return self.notice()
