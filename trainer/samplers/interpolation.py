"""Noise between two draws, to interpolate between the samples of any model."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from trainer.noise import Noise


@dataclass(frozen=True)
class Between(Noise):
    """The noise of `positions` at share 0, of `ends` at share 1, and cos(a) one + sin(a) other between them.

    Every value stays standard normal, so every result is a sample: from the latents of a VAE, of each level of a
    hierarchy, and from the start and each step of a diffusion. Uniform values are those of `positions`.
    """

    ends: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.int64))  # [B]
    share: Tensor = field(default_factory=lambda: torch.zeros(1))  # [B] in [0, 1]

    def normal(self, name: str, shape: tuple[int, ...]) -> Tensor:
        start, end = (
            Noise(self.seed, self.purpose, positions, dtype=self.dtype, patches=self.patches).normal(name, shape)
            for positions in (self.positions, self.ends)
        )
        angle = (self.share.to(self.dtype) * (math.pi / 2)).reshape(-1, *[1] * len(shape))
        return angle.cos() * start + angle.sin() * end
