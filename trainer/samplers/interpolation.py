"""Noise between two draws, so that any model's samples can be led from one image to another."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from trainer.noise import Noise


@dataclass(frozen=True)
class Between(Noise):
    """The noise of `positions` at share 0, that of `ends` at share 1, and in between cos(a) one + sin(a) other.

    That keeps every value standard normal, so that whatever is made of it is a sample too: latents of a VAE, of every
    level of a hierarchy, the start of a diffusion and each of its steps. Uniform values are those of `positions`.
    """

    ends: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.int64))  # [B]
    share: Tensor = field(default_factory=lambda: torch.zeros(1))  # [B] in [0, 1]

    def normal(self, name: str, shape: tuple[int, ...]) -> Tensor:
        start = Noise(self.seed, self.purpose, self.positions, dtype=self.dtype).normal(name, shape)
        end = Noise(self.seed, self.purpose, self.ends, dtype=self.dtype).normal(name, shape)
        angle = (self.share.to(self.dtype) * (math.pi / 2)).reshape(-1, *[1] * len(shape))
        return angle.cos() * start + angle.sin() * end
