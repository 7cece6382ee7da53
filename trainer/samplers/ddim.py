"""DDIM (Song et al. 2021, arXiv 2010.02502, equation 12 with sigma = 0): Euler's method on the flow. Order 1."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from trainer.gaussian_process import alpha, sigma
from trainer.noise import Noise
from trainer.samplers.base import Denoise, SamplerStep


def ddim(denoise: Denoise, z: Tensor, gammas: Tensor, noise: Noise, temperature: float = 1.0) -> Iterator[SamplerStep]:
    for i in range(len(gammas) - 1):
        x, eps = denoise(z, gammas[i])
        z = alpha(gammas[i + 1]) * x + sigma(gammas[i + 1]) * eps
        yield SamplerStep(z, x, gammas[i + 1])
