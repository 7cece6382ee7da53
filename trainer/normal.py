"""The diagonal normal distribution of the latents."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

WIDEST = 1.0
"""Largest log-ratio of a posterior's scale to its prior's. On training images it stays below 0.1: a wider posterior
knows less than the prior. Without this bound an image unlike those had scales of e^4.7, and its draws, which no decoder
had seen, cost 700,000 nats."""
KNEE = 0.5  # nats of log-scale over which `at_most` and `at_least` bend


class Normal(NamedTuple):
    """N(mean, exp(log_scale)^2), diagonal; sums run over all dimensions but the batch.

    A tuple, so that FSDP2 finds the tensors in what a unit returns.
    """

    mean: Tensor  # [B, ...]
    log_scale: Tensor  # of the same shape

    @classmethod
    def standard(cls, like: Tensor) -> Normal:
        """N(0, I) of the shape, device and type of `like` (equation 20)."""
        return cls(torch.zeros_like(like), torch.zeros_like(like))

    def sample(self, eps: Tensor) -> Tensor:
        """z = mean + scale * eps (equation 21; Kingma and Welling 2014), eps ~ N(0, I) of the same shape."""
        return self.mean + torch.exp(self.log_scale) * eps

    def log_prob(self, z: Tensor) -> Tensor:
        """[B] nats: log density of z."""
        return self.log_prob_elements(z).flatten(1).sum(1)

    def log_prob_elements(self, z: Tensor) -> Tensor:
        """[B, ...] nats: log density of each element of z."""
        squares = ((z - self.mean) * torch.exp(-self.log_scale)) ** 2
        return -(0.5 * squares + self.log_scale + 0.5 * math.log(2 * math.pi))

    def kl_elements(self, p: Normal) -> Tensor:
        """KL(self || p) of every element, [B, ...] nats."""
        ratio = self.log_scale - p.log_scale
        shift = (self.mean - p.mean) * torch.exp(-p.log_scale)
        return 0.5 * (torch.exp(2 * ratio) + shift**2 - 1) - ratio

    def kl(self, p: Normal) -> Tensor:
        """[B] nats: KL(self || p); for p = N(0, I) it is -1/2 sum(1 + log s^2 - m^2 - s^2) (equation 18)."""
        return self.kl_elements(p).flatten(1).sum(1)


def bounded(log_scale: Tensor, limit: float = 5.0) -> Tensor:
    """A log-scale squashed smoothly into (-limit, limit), so that no exponential overflows (NVAE, Vahdat 2020)."""
    return limit * torch.tanh(log_scale / limit)


def at_most(log_scale: Tensor, limit: float) -> Tensor:
    """The same value up to limit - KNEE; above that squashed smoothly to less than limit."""
    over = log_scale - (limit - KNEE)
    return torch.where(over > 0, limit - KNEE + KNEE * torch.tanh(over / KNEE), log_scale)


def at_least(log_scale: Tensor, limit: float) -> Tensor:
    """The same value from limit + KNEE on; below that squashed smoothly to more than limit."""
    return -at_most(-log_scale, -limit)
