"""Averages of the weights whose width is chosen after training (Karras et al. 2024, EDM2, arXiv 2312.02696, part 3).

A power-function average weighs the weights at image count tau by tau^gamma; its relative width is the standard
deviation of that profile as a fraction of the training length. Two such averages are kept during training, and
snapshots of them stored (checkpoints/snapshots.py); afterwards the average of any width at any image count is the
linear combination of snapshots whose profile is nearest to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trainer.distributed.ranks import rank
from trainer.distributed.sharding import gathered_tensor
from trainer.training.ema import Average

WIDTHS = (0.05, 0.1)  # of the two averages kept during training, as in the paper
WIDEST = 12**-0.5  # of the uniform average


class Snapshot(NamedTuple):
    """A stored average of relative width `width` over the weights from `start` to `images` images."""

    images: int
    width: float
    start: int = 0


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
                if average.parameters[name].requires_grad:
                    whole = gathered_tensor(value)
                    if rank() == 0:
                        stored[average.width][name] = whole.to("cpu", torch.float16)
        return stored

    def state_dict(self) -> dict[str, Tensor]:
        """The averages as "<width>/<parameter>"; filled in place by a restart."""
        return {f"{a.width}/{name}": value for a in self.averages for name, value in a.state_dict().items()}


def exponent(width: float) -> float:
    """gamma of the profile tau^gamma of relative width `width`, in (0, 0.289) (equations 123-126).

    The variance of that distribution over [0, 1] is (gamma + 1) / ((gamma + 2)^2 (gamma + 3)).
    """
    if not 0 < width < WIDEST:
        raise ValueError(f"width: {width} is not between 0 and 0.289, the width of an average of all weights alike")
    roots = np.roots([1, 7, 16 - width**-2, 12 - width**-2])
    return float(max(root.real for root in roots if abs(root.imag) < 1e-9))


def combination(stored: Sequence[Snapshot], wanted: Snapshot) -> NDArray[np.float64]:
    """[len(stored)] factors of the snapshots in the combination nearest to the profile of `wanted` (algorithm 3)."""
    products = np.array([[_product(a, b) for b in stored] for a in stored])
    target = np.array([_product(a, wanted) for a in stored])
    factors: NDArray[np.float64] = np.linalg.lstsq(products, target, rcond=1e-12)[0]
    return factors


def _product(a: Snapshot, b: Snapshot) -> float:
    """Integral of the product of two profiles, in 1/images (algorithm 3)."""
    if a.images > b.images:
        a, b = b, a
    gamma_a, gamma_b = exponent(a.width), exponent(b.width)
    scale = (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1)
    return float(scale * (a.images / b.images) ** gamma_b / b.images)
