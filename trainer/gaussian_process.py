"""The encoder of a diffusion model: q(z_t | x) = N(alpha_t x, sigma_t^2 I), as functions of gamma = -log SNR.

Kingma et al. 2021 (VDM, arXiv 2107.00630), sections 3.1 and 3.3; Luo 2022 (arXiv 2208.11970), equations 70 and 84.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.patches import Patches, sum_over_image


def expand_to(values: Tensor, x: Tensor) -> Tensor:
    """One value per image, [B], reshaped to broadcast over x [B, ...]; a scalar stays a scalar."""
    return values if values.dim() == 0 else values.reshape(-1, *[1] * (x.dim() - 1))


def alpha(gamma: Tensor) -> Tensor:
    """The factor of the signal, sqrt(sigmoid(-gamma))."""
    return torch.sqrt(torch.sigmoid(-gamma))


def sigma(gamma: Tensor) -> Tensor:
    """The standard deviation of the noise, sqrt(sigmoid(gamma))."""
    return torch.sqrt(torch.sigmoid(gamma))


def diffuse(x: Tensor, eps: Tensor, gamma: Tensor) -> Tensor:
    """z = alpha x + sigma eps, a draw from q(z | x); x and eps [B, ...], gamma [B] or a scalar."""
    gamma = expand_to(gamma, x)
    return alpha(gamma) * x + sigma(gamma) * eps


def prior_rate(x: Tensor, gamma_1: Tensor, patches: Patches | None = None) -> Tensor:
    """[B] nats: KL(q(z_1 | x) || N(0, I)), closed."""
    signal = torch.sigmoid(-gamma_1)  # alpha^2; sigma^2 - 1 = -alpha^2 and -log sigma^2 = softplus(-gamma)
    return 0.5 * sum_over_image(signal * (x.square() - 1) + F.softplus(-gamma_1), patches)


def posterior(z: Tensor, x: Tensor, gamma_t: Tensor, gamma_s: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [B, ...] and standard deviation (of gamma's shape) of q(z_s | z_t, x), s < t (VDM, equations 25-28).

    With the denoiser's estimate for x it is p(z_s | z_t).
    """
    gamma_t, gamma_s = expand_to(gamma_t, z), expand_to(gamma_s, z)
    c = -torch.expm1(gamma_s - gamma_t)  # sigma_{t|s}^2 / sigma_t^2
    mean = alpha(gamma_s) * c * x + (1 - c) * alpha(gamma_s) / alpha(gamma_t) * z
    return mean, sigma(gamma_s) * torch.sqrt(c)
