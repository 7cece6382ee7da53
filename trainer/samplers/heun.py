"""Heun's method on d y / d n = eps'(y), y = z / alpha, n = sigma / alpha (Karras et al. 2022, algorithm 1). Order 2.

Two evaluations of the denoiser a step.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from trainer.gaussian_process import alpha
from trainer.noise import Noise
from trainer.samplers.base import Denoise, SamplerStep


def heun(denoise: Denoise, z: Tensor, gammas: Tensor, noise: Noise, temperature: float = 1.0) -> Iterator[SamplerStep]:
    levels = torch.exp(gammas / 2)
    for i in range(len(gammas) - 1):
        here, there = alpha(gammas[i]), alpha(gammas[i + 1])
        step = levels[i + 1] - levels[i]
        x, slope = denoise(z, gammas[i])
        y = z / here
        _, slope_there = denoise((y + step * slope) * there, gammas[i + 1])
        z = (y + step * (slope + slope_there) / 2) * there
        yield SamplerStep(z, x, gammas[i + 1])
