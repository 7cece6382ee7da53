"""The decoder of the source text: a Gaussian of fixed variance, that is, the squared error."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import PositiveFloat
from torch import Tensor

from trainer.config import Config
from trainer.images import ImageSpec
from trainer.likelihoods.base import Likelihood
from trainer.noise import Noise


class GaussianConfig(Config):
    """A density over x in [-1, 1]: reported in nats, never in bits per dimension."""

    kind: Literal["gaussian"] = "gaussian"
    scale: PositiveFloat = 1.0
    """Standard deviation in units of x. With 1 the bound is half the squared error, up to a constant."""

    def build(self, spec: ImageSpec) -> Gaussian:
        return Gaussian(spec, self.scale)


class Gaussian(Likelihood):
    """log N(x; output, scale^2 I)."""

    outputs_per_channel = 1
    is_density = True

    def __init__(self, spec: ImageSpec, scale: float):
        super().__init__(spec)
        self.scale = scale

    def log_prob(self, output: Tensor, levels: Tensor) -> Tensor:
        squares = ((self.spec.scaled(levels, output.dtype) - output) / self.scale) ** 2
        return -0.5 * (squares + math.log(2 * math.pi * self.scale**2)).flatten(1).sum(1)

    def mean(self, output: Tensor) -> Tensor:
        return self.spec.nearest_level(output)

    def sample(self, output: Tensor, noise: Noise) -> Tensor:
        return self.spec.nearest_level(output + self.scale * noise.normal("x", self.spec.shape))
