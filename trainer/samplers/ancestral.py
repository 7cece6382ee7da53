"""The model's own chain: z_s ~ q(z_s | z_t, x = x'(z_t)) (Ho et al. 2020, algorithm 2; VDM, equation 30)."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from trainer.gaussian_process import posterior
from trainer.noise import Noise
from trainer.samplers.base import Denoise, SamplerStep


def ancestral(
    denoise: Denoise, z: Tensor, gammas: Tensor, noise: Noise, temperature: float = 1.0
) -> Iterator[SamplerStep]:
    for i in range(len(gammas) - 1):
        x, _ = denoise(z, gammas[i])
        mean, scale = posterior(z, x, gammas[i], gammas[i + 1])
        z = mean + temperature * scale * noise.normal(f"ancestral{i}", tuple(z.shape[1:]))
        yield SamplerStep(z, x, gammas[i + 1])
