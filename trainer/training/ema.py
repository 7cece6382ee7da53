"""Moving averages of the weights, sharded over the ranks as the weights are."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from trainer.distributed.sharding import local

RAMP = 0.05  # early in training the half-life is this fraction of the images seen (EDM2, Karras et al. 2024), so that
#              the average forgets the initial weights


class Average:
    """A moving average of a model's trained parameters in float32 (or wider)."""

    def __init__(self, model: nn.Module):
        self.parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
        self.average = {name: _wide(value.detach().clone()) for name, value in self.parameters.items()}

    @torch.no_grad()
    def lerp(self, weight: float) -> None:
        """average += weight * (parameters - average)"""
        values = [_wide(local(value.detach())) for value in self.parameters.values()]
        torch._foreach_lerp_([local(value) for value in self.average.values()], values, weight)

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by the parameters' names; filled in place by a restart."""
        return self.average


class Ema(Average):
    """Exponential moving average with a half-life in images."""

    def __init__(self, model: nn.Module, half_life: int):
        super().__init__(model)
        self.half_life = half_life

    def update(self, images: int, batch: int) -> None:
        """Update with the weights after `images` images, the last `batch` of them in this step."""
        self.lerp(1 - 0.5 ** (batch / min(self.half_life, max(RAMP * images, 1e-9))))

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Inside the block the model's parameters hold the averages; afterwards their own values again."""
        with torch.no_grad():
            own = {name: value.detach().clone() for name, value in self.parameters.items()}
            try:
                for name, value in self.parameters.items():
                    value.copy_(self.average[name])
                yield
            finally:
                for name, value in self.parameters.items():
                    value.copy_(own[name])


def _wide(value: Tensor) -> Tensor:
    return value if value.dtype in (torch.float32, torch.float64) else value.float()
