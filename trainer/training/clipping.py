"""How often gradients are clipped: a limit that clips every gradient, or none, is not what was meant."""

from __future__ import annotations

import torch
from torch import Tensor

ENOUGH = 100  # steps after which every gradient clipped is no coincidence


class Clipping:
    """Counts, on the device, the steps of this process whose gradient was clipped to the norm `limit` (None: none)."""

    def __init__(self, limit: float | None, device: torch.device):
        self.limit, self.said = limit, False
        self.sums = torch.zeros(3, dtype=torch.float64, device=device)  # steps, clipped ones, the largest norm

    @torch.no_grad()
    def add(self, norm: Tensor) -> None:
        """Add the gradient norm of a step, before clipping; one that is not finite does not count."""
        if self.limit is None:
            return
        finite = torch.isfinite(norm)
        norm = torch.where(finite, norm, torch.zeros_like(norm)).double()
        steps, clipped, largest = self.sums.unbind()
        self.sums = torch.stack([steps + finite, clipped + (norm > self.limit), torch.maximum(largest, norm)])

    def remark(self, last: bool, mean_norm: float) -> str:
        """A line for the user, once: every gradient so far was clipped or, at the `last` row, none was; else "".

        `mean_norm` is that of the row. Synchronizes with the device.
        """
        if self.limit is None or self.said:
            return ""
        steps, clipped, largest = self.sums.tolist()
        if steps < ENOUGH or 0 < clipped < steps or (clipped == 0 and not last):
            return ""
        self.said = True
        if clipped:
            return (
                f"optim.clip: all of {steps:,.0f} gradients were clipped to {self.limit:,.4g}, their norm is about "
                f"{mean_norm:,.4g}; a limit above the usual norm clips only outliers, null clips nothing"
            )
        return (
            f"optim.clip: none of {steps:,.0f} gradients reached {self.limit:,.4g}; the largest norm was {largest:,.4g}"
        )
