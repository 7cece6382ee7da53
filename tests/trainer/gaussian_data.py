"""Gaussian data N(m, C), for which the denoiser, the flow and the bound of a diffusion are known exactly."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from trainer.gaussian_process import alpha, expand_to, sigma
from trainer.samplers import Denoised
from trainer.schedules import Learned, NoiseSchedule


class Optimal(nn.Module):
    """E[x | z] and E[eps | z] of independent values x ~ N(mean, variance), callable as samplers call a denoiser."""

    def __init__(self, mean: float | Tensor, variance: float | Tensor):
        super().__init__()
        self.mean, self.variance = (torch.as_tensor(v, dtype=torch.float64) for v in (mean, variance))

    def forward(self, z: Tensor, gamma: Tensor, *_: object) -> Denoised:
        gamma = expand_to(gamma, z)
        total = alpha(gamma).square() * self.variance + sigma(gamma).square()
        surprise = (z - alpha(gamma) * self.mean) / total
        return Denoised(self.mean + self.variance * alpha(gamma) * surprise, sigma(gamma) * surprise)


def flow(z: Tensor, gamma_from: Tensor, gamma_to: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Where the probability-flow equation takes z: the same quantile of N(alpha m, alpha^2 C + sigma^2)."""

    def scale(gamma: Tensor) -> Tensor:
        return torch.sqrt(alpha(gamma).square() * variance + sigma(gamma).square())

    return alpha(gamma_to) * mean + (z - alpha(gamma_from) * mean) * scale(gamma_to) / scale(gamma_from)


def normal_grid(n: int, reach: float = 8.0) -> tuple[Tensor, Tensor]:
    """Nodes and weights of the trapezoidal rule for N(0, 1); float64."""
    nodes = torch.linspace(-reach, reach, n, dtype=torch.float64)
    return nodes, torch.softmax(-0.5 * nodes.square(), 0)


def time_grid(schedule: NoiseSchedule, n: int) -> tuple[Tensor, Tensor]:
    """n of Gauss and Legendre's nodes and weights in each part of [0, 1] on which gamma(t) is smooth; float64."""
    nodes, weights = (torch.from_numpy(values) / 2 for values in np.polynomial.legendre.leggauss(n))
    lengths = torch.ones(1, dtype=torch.float64)
    if isinstance(schedule, Learned):
        lengths = schedule.density().detach() / len(schedule.logits)
    starts = lengths.cumsum(0) - lengths
    return (starts[:, None] + lengths[:, None] * (nodes + 0.5)).flatten(), (lengths[:, None] * weights).flatten()


class FixedNoise:
    """Noise whose draws a test has chosen, by name; times are the middles of cells unless they are chosen too."""

    purpose = "evaluate"
    patches = None
    dtype = torch.float64

    def __init__(self, **draws: Tensor):
        self.draws = draws

    def normal(self, name: str, shape: tuple[int, ...]) -> Tensor:
        return self.draws[name].reshape(-1, *shape)

    def stratified(self, name: str) -> Tensor:
        return self.draws[name]

    def dropout(self, name: str, x: Tensor, p: float) -> Tensor:
        return x
