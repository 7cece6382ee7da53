"""Classifier-free guidance: with a condition and without it, or with a negative one, as one denoiser."""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.gaussian_process import alpha, sigma
from trainer.patches import Patches, sum_over_image
from trainer.samplers.base import Denoise, Denoised


def guided(
    conditional: Denoise,
    other: Denoise,
    scale: float,
    interval: tuple[float, float | None] = (0.0, None),
    rescale: float = 0.0,
    patches: Patches | None = None,
) -> Denoise:
    """other + scale (conditional - other) at noise levels sigma / alpha in (low, high], `conditional` at the others.

    Ho and Salimans 2022 (arXiv 2207.12598, equation 6), which has the unconditional estimate as `other`; the interval
    is that of Kynkaanniemi et al. 2024 (arXiv 2404.07724, section 3), high None: no limit. `rescale`: phi of
    `rescaled`. Estimates that are not needed are not computed: `other` at scale 1 and outside the interval,
    `conditional` at scale 0.
    """
    if scale == 1:
        return conditional

    def denoise(z: Tensor, gamma: Tensor) -> Denoised:
        if interval != (0.0, None) and not _inside(gamma, interval):
            return conditional(z, gamma)
        without = other(z, gamma)
        if scale == 0:
            return without
        given = conditional(z, gamma)
        mixed = Denoised(*(w + scale * (c - w) for c, w in zip(given, without, strict=True)))
        return rescaled(mixed, given, gamma, rescale, patches) if rescale else mixed

    return denoise


def rescaled(
    mixed: Denoised, conditional: Denoised, gamma: Tensor, phi: float, patches: Patches | None = None
) -> Denoised:
    """The guided estimate of x with the standard deviation, over each image, of the conditional one, to the share phi
    (Lin et al. 2023, arXiv 2305.08891, equations 15 and 16); eps follows from z = alpha x + sigma eps.
    """
    wanted, found = (_deviation(estimate.x, patches) for estimate in (conditional, mixed))
    factor = 1 + phi * (torch.where(found > 0, wanted / found, 1) - 1)
    shift = alpha(gamma) / sigma(gamma) * (1 - factor) * mixed.x  # without the difference z - alpha x, which cancels
    return Denoised(factor * mixed.x, mixed.eps + shift)


def _deviation(x: Tensor, patches: Patches | None) -> Tensor:
    """[B, 1, ...]: the standard deviation of each image."""
    if patches is not None:
        count = (patches.counts * (x.shape[1] * x.shape[3] ** 2)).clamp(min=1)
        mean = (sum_over_image(x, patches) / count).reshape(-1, 1, 1, 1)
        return (sum_over_image((x - mean).square(), patches) / count).sqrt().reshape(-1, 1, 1, 1)
    return x.flatten(1).std(1, correction=0).reshape(-1, *[1] * (x.dim() - 1))


def _inside(gamma: Tensor, interval: tuple[float, float | None]) -> bool:
    low, high = interval
    level = float(torch.exp(gamma / 2))
    return low < level and (high is None or level <= high)
