"""DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2): multistep on x', in lambda = -gamma / 2. Order 2.

One evaluation of the denoiser a step.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from trainer.gaussian_process import alpha, sigma
from trainer.noise import Noise
from trainer.samplers.base import Denoise, SamplerStep


def dpm_solver(
    denoise: Denoise, z: Tensor, gammas: Tensor, noise: Noise, temperature: float = 1.0
) -> Iterator[SamplerStep]:
    before: Tensor | None = None
    for i in range(len(gammas) - 1):
        h = (gammas[i] - gammas[i + 1]) / 2
        x, _ = denoise(z, gammas[i])
        towards = x
        if before is not None:  # extrapolated to the middle of the step
            ratio = h / (gammas[i - 1] - gammas[i])  # 1 / 2r
            towards = x + ratio * (x - before)
        z = sigma(gammas[i + 1]) / sigma(gammas[i]) * z - alpha(gammas[i + 1]) * torch.expm1(-h) * towards
        before = x
        yield SamplerStep(z, x, gammas[i + 1])
