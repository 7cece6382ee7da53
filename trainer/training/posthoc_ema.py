"""Averages of the weights whose width is chosen after training (Karras et al. 2024, EDM2, arXiv 2312.02696, part 3).

A power-function average weighs the weights at image count tau by tau^gamma; its relative width is the standard
deviation of that profile as a fraction of the training length. Two such averages are kept during training, and
snapshots of them stored (checkpoints/snapshots.py); afterwards the average of any width at any image count is the
linear combination of snapshots whose profile is nearest to it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trainer.checkpoints.profiles import exponent
from trainer.distributed.ranks import rank
from trainer.distributed.sharding import gathered_tensor
from trainer.training.ema import Average

WIDTHS = (0.05, 0.1)  # of the two averages kept during training, as in the paper


class PowerEma(Average):
    """The power-function average of relative width `width`."""

    def __init__(self, model: nn.Module, width: float):
        super().__init__(model)
        self.width, self.gamma = width, exponent(width)

    def update(self, images: int, batch: int) -> None:
        """Update with the weights after `images` images, the last `batch` in this step (equation 2, continuous)."""
        self.lerp(1 - (1 - batch / images) ** (self.gamma + 1))


class PosthocEma:
    """The averages whose snapshots are stored during training."""

    def __init__(self, model: nn.Module, widths: Sequence[float] = WIDTHS):
        self.averages = [PowerEma(model, width) for width in widths]
        self.start = 0
        """Images after which averaging started: not 0 if `optim.posthoc` was turned on later."""

    def update(self, images: int, batch: int) -> None:
        """Update with the weights after `images` images, the last `batch` of them in this step."""
        for average in self.averages:
            average.update(images - self.start, batch)

    def halves(self) -> dict[float, dict[str, Tensor]]:
        """What a snapshot stores, by width: averages of the trained parameters, unsharded, on the CPU, in half
        precision as in the paper. All ranks together; empty dictionaries on ranks other than 0.
        """
        stored: dict[float, dict[str, Tensor]] = {average.width: {} for average in self.averages}
        for average in self.averages:
            for name, value in average.average.items():
                whole = gathered_tensor(value)
                if rank() == 0:
                    stored[average.width][name] = whole.to("cpu", torch.float16)
        return stored

    def state_dict(self) -> dict[str, Tensor]:
        """The averages as "<width>/<parameter>"; filled in place by a restart."""
        return {f"{a.width}/{name}": value for a in self.averages for name, value in a.state_dict().items()}
