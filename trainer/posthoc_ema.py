"""Averages of the weights whose length is chosen after training (Karras et al. 2024, EDM2, arXiv 2312.02696, part 3).

A power-function average weighs the weights at image count tau by tau^gamma; its relative width is the standard
deviation of that profile as a share of the training's length. While training goes on two such averages are kept and
snapshots of them are stored; afterwards the average of any width, at any image count, is the combination of snapshots
whose profile is nearest to it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cluster.storage import Storage
from trainer.errors import TrainingError

WIDTHS = (0.05, 0.1)  # of the two averages that are kept, as in the paper
_NAME = re.compile(r"(\d{12})-(0\.\d{3})\.safetensors")


class Snapshot(NamedTuple):
    """A stored average: that of relative width `width` after `images` images."""

    images: int
    width: float


class PowerEma:
    """The power-function average of relative width `width` of a model's parameters, in float32."""

    def __init__(self, model: nn.Module, width: float):
        self.width, self.gamma = width, exponent(width)
        self.parameters = dict(model.named_parameters())
        self.average = {name: value.detach().clone().float() for name, value in self.parameters.items()}

    @torch.no_grad()
    def update(self, images: int, batch: int) -> None:
        """Take in the weights after `images` images, `batch` of them new (equation 2, continuous in the images)."""
        decay = (1 - batch / images) ** (self.gamma + 1)
        values = [value.detach().float() for value in self.parameters.values()]
        torch._foreach_lerp_(list(self.average.values()), values, 1 - decay)

    def write(self, folder: Storage, images: int) -> None:
        """Store a snapshot, in half precision as the authors do, as <images>-<width>.safetensors."""
        halves = {name: value.to(torch.float16) for name, value in self.average.items()}
        folder.write(f"{images:012d}-{self.width:.3f}.safetensors", safetensors.torch.save(halves))

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by the parameters' names."""
        return self.average

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over the averages of a checkpoint."""
        for name, value in self.average.items():
            value.copy_(state[name])


def exponent(width: float) -> float:
    """gamma of the profile tau^gamma of relative width `width`, in (0, 0.289) (equations 123-126).

    The variance of that distribution over [0, 1] is (gamma + 1) / ((gamma + 2)^2 (gamma + 3)).
    """
    if not 0 < width < 12**-0.5:
        raise ValueError(f"width: {width} is not between 0 and 0.289, the width of an average of all weights alike")
    roots = np.roots([1, 7, 16 - width**-2, 12 - width**-2])
    return float(max(root.real for root in roots if abs(root.imag) < 1e-9))


def combination(stored: Sequence[Snapshot], wanted: Snapshot) -> NDArray[np.float64]:
    """[len(stored)] the factors of the snapshots whose sum is nearest to the profile of `wanted` (algorithm 3)."""
    products = np.array([[_product(a, b) for b in stored] for a in stored])
    factors, *_ = np.linalg.lstsq(products, np.array([_product(a, wanted) for a in stored]), rcond=1e-12)
    return factors


def reconstruct(folder: Storage, width: float, images: int | None = None) -> dict[str, Tensor]:
    """The average of relative width `width` after `images` images (None: the last snapshot's), float32 by name.

    Raises TrainingError if nothing has been stored, or nothing for so few images.
    """
    found = {entry.path: match for entry in folder.list() if (match := _NAME.fullmatch(entry.path))}
    snapshots = {name: Snapshot(int(match[1]), float(match[2])) for name, match in found.items()}
    if not snapshots:
        raise TrainingError(f"{folder.url}: no snapshots of averages; they are written while a run trains")
    last = max(snapshot.images for snapshot in snapshots.values())
    wanted = Snapshot(images or last, width)
    used = {name: snapshot for name, snapshot in snapshots.items() if snapshot.images <= wanted.images}
    if not used or wanted.images > last:
        first = min(snapshot.images for snapshot in snapshots.values())
        raise TrainingError(f"{folder.url}: the snapshots reach from {first:,} to {last:,} images, not {images:,}")
    total: dict[str, Tensor] = {}
    for name, factor in zip(used, combination(list(used.values()), wanted), strict=True):
        for key, value in safetensors.torch.load(folder.read(name)).items():
            total[key] = total.get(key, torch.zeros(())) + float(factor) * value.float()
    return total


def _product(a: Snapshot, b: Snapshot) -> float:
    """The integral of the product of two profiles, in units of one over images (algorithm 3)."""
    if a.images > b.images:
        a, b = b, a
    gamma_a, gamma_b = exponent(a.width), exponent(b.width)
    scale = (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1)
    return scale * (a.images / b.images) ** gamma_b / b.images
