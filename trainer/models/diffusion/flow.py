"""The probability-flow likelihood (Song et al. 2021, arXiv 2011.13456, section 4.3): another estimate than the bound.

With y = z / alpha and n = sigma / alpha the flow is d y / d n = eps'(y); along it log p changes by the divergence:
log p(y_0) = log p(y_1) + the integral of div eps' from n_0 to n_1 (instantaneous change of variables). Estimated by
Heun's method, of order 2 in the steps, and one random probe an image (Hutchinson), so not exactly a bound.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trainer.gaussian_process import alpha
from trainer.noise import Noise
from trainer.patches import sum_over_image
from trainer.samplers.base import Denoise


def flow_log_density(denoise: Denoise, y: Tensor, gammas: Tensor, noise: Noise) -> Tensor:
    """[B] nats: log density of y [B, ...] at gammas[0] under the flow that ends in z ~ N(0, I) at gammas[-1].

    `gammas` [steps + 1] rises.
    """
    probe = noise.normal("flow", tuple(y.shape[1:])).sign()
    levels = torch.exp(gammas / 2)
    total = torch.zeros(len(y), dtype=y.dtype, device=y.device)
    slope, divergence = _slope(denoise, y, gammas[0], probe)
    for i in range(len(gammas) - 1):
        step = levels[i + 1] - levels[i]
        slope_there, divergence_there = _slope(denoise, y + step * slope, gammas[i + 1], probe)
        y = y + step * (slope + slope_there) / 2
        total = total + step * (divergence + divergence_there) / 2
        slope, divergence = _slope(denoise, y, gammas[i + 1], probe)
    z = y * alpha(gammas[-1])
    normal = -0.5 * (z.square() + math.log(2 * math.pi)) + torch.log(alpha(gammas[-1]))
    return total + sum_over_image(normal, noise.patches)


def _slope(denoise: Denoise, y: Tensor, gamma: Tensor, probe: Tensor) -> tuple[Tensor, Tensor]:
    """eps' at y, and [B] the probe's estimate of its divergence."""
    with torch.enable_grad():
        y = y.detach().requires_grad_()
        eps = denoise(y * alpha(gamma), gamma).eps
        (gradient,) = torch.autograd.grad(eps, y, probe)
    return eps.detach(), (gradient * probe).flatten(1).sum(1)  # the probe is 0 at padding
