"""Skips steps whose gradient is not finite or explodes: decided on the device, identically on every rank."""

from __future__ import annotations

import math

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from trainer.config import Config
from trainer.distributed.sharding import gathered_tensor
from trainer.errors import DivergedError

LEVEL_WEIGHT = 0.02  # of the newest gradient norm in the running level
LEVEL_STEPS = 20  # steps before the level is used


class GuardConfig(Config):
    """When a step is skipped, and when the run is rolled back or stopped because of skipped steps."""

    factor: PositiveFloat = 20.0
    """A step is skipped if its gradient norm exceeds `factor` times the running average of gradient norms, or is not
    finite."""
    max_skips: PositiveInt = 50
    """Consecutive skipped steps after which the run rolls back to its last good commit; the second time it stops with
    an error."""
    rollback_lr: PositiveFloat | None = 0.5
    """Learning-rate multiplier after a rollback. null: never roll back, stop."""


class Guard:
    """Monitors the norm of the GLOBAL gradient.

    `state` is a tensor on the device: running mean of the log-norm, steps taken, consecutive skips, total skips, and
    the largest number of consecutive skips since the last `check`.
    """

    def __init__(self, config: GuardConfig, device: torch.device):
        self.config = config
        self.state = torch.zeros(5, dtype=torch.float32, device=device)

    def step(self, optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], clip: float | None) -> Tensor:
        """Clip the gradients to the norm `clip` (None: do not), step unless the norm is bad; returns the norm before
        clipping.
        """
        if clip is None:
            norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        else:
            norm = nn.utils.clip_grad_norm_(parameters, clip)
        norm = gathered_tensor(norm)
        level, taken, row, total, worst = self.state.unbind()
        log_norm = torch.log(norm.float().clamp(min=1e-30))
        exploded = (log_norm > level + math.log(self.config.factor)) & (taken >= LEVEL_STEPS)
        bad = (~torch.isfinite(norm)) | exploded
        optimizer.found_inf = bad.float()  # type: ignore[attr-defined]  # how the fused kernels skip a step
        optimizer.grad_scale = None  # type: ignore[attr-defined]
        optimizer.step()
        memory = torch.clamp(1 / (taken + 1), min=LEVEL_WEIGHT)  # the plain mean at first
        still = bad | (norm == 0)  # a batch without usable images carries no information
        level = torch.where(still, level, level + memory * (log_norm - level))
        row = torch.where(bad, row + 1, torch.zeros_like(row))
        skipped = bad.float()
        self.state = torch.stack([level, taken + 1 - skipped, row, total + skipped, torch.maximum(worst, row)])
        return norm

    @property
    def healthy(self) -> bool:
        """Whether the last step was taken; synchronizes with the device."""
        return bool(self.state[2].item() == 0)

    def check(self) -> int:
        """Total skipped steps; synchronizes with the device. Raises DivergedError after `max_skips` in a row."""
        level, taken, row, total, worst = self.state.tolist()
        self.state[4] = row
        if worst >= self.config.max_skips:
            began = round(taken + total - (row or worst))
            raise DivergedError(
                f"diverged: {worst:.0f} steps in a row had a gradient that was not finite or more than "
                f"{self.config.factor:g} times its running level of {math.exp(level):.3g} "
                f"(after {taken:.0f} good steps); lower optim.lr or lengthen optim.warmup",
                began,
            )
        skipped: float = total
        return round(skipped)
