"""The few things that ranks must do together."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from trainer.errors import TrainingError

T = TypeVar("T")

POLL_SECONDS = 0.25  # how often, about, the ranks ask one another whether to stop


def world_size() -> int:
    """The number of ranks; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process's place among the ranks; 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def add_up(values: Tensor) -> Tensor:
    """The sum over the ranks of a tensor, which is left as it is."""
    total = values.clone()
    if world_size() > 1:
        dist.all_reduce(total)
    return total


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


class Agreement:
    """Whether any rank wants to stop, answered on all ranks at the same step and without a collective a step.

    Every few steps the ranks start a small all-reduce and read it at the next turn, when it has long arrived. Rank 0
    chooses how many steps lie between the turns (a quarter of a second's worth) and sends that along.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.message: Tensor | None = None
        self.pending: dist.Work | None = None
        self.steps_left, self.interval = 1, 1
        self.last = time.monotonic()

    def reached(self, wish: bool) -> bool:
        """Called once a step on every rank with its own wish; True on all of them at once."""
        if world_size() == 1:
            return wish
        self.steps_left -= 1
        if self.steps_left > 0:
            return False
        now = time.monotonic()
        pace = self.interval / max(now - self.last, 1e-6)  # steps a second since the last turn
        self.last = now
        agreed = False
        if self.pending is not None and self.message is not None:
            self.pending.wait()
            wishes, interval = self.message.tolist()
            agreed, self.interval = wishes > 0, round(interval)
        proposal = min(max(round(POLL_SECONDS * pace), 1), 1000) if rank() == 0 else 0
        self.message = torch.tensor([float(wish), float(proposal)], device=self.device)
        self.pending = dist.all_reduce(self.message, async_op=True)
        self.steps_left = self.interval
        return agreed
