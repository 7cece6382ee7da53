"""The scale on which latents are diffused: mean 0 and variance 1 of each channel, measured once."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from trainer.normal import Normal


class LatentScale(nn.Module):
    """u = (z - mean) / scale for z [B, C, h, w]; the identity until it is measured. Saved with the model."""

    mean: Tensor  # [C, 1, 1]
    log_scale: Tensor  # [C, 1, 1]

    def __init__(self, shape: tuple[int, int, int]):
        super().__init__()
        self.places = math.prod(shape[1:])
        self.register_buffer("mean", torch.zeros(shape[0], 1, 1))
        self.register_buffer("log_scale", torch.zeros(shape[0], 1, 1))

    def forward(self, z: Tensor) -> Tensor:
        """u"""
        return (z - self.mean.to(z.dtype)) * torch.exp(-self.log_scale.to(z.dtype))

    def inverse(self, u: Tensor) -> Tensor:
        """z"""
        return u * torch.exp(self.log_scale.to(u.dtype)) + self.mean.to(u.dtype)

    def scaled(self, q: Normal) -> Normal:
        """The distribution of u where z has the distribution q."""
        return Normal(self(q.mean), q.log_scale - self.log_scale.to(q.log_scale.dtype))

    def normal(self, like: Tensor) -> Normal:
        """N(mean, scale^2) of the shape of z."""
        mean, log_scale = (part.to(like.dtype).expand_as(like) for part in (self.mean, self.log_scale))
        return Normal(mean, log_scale)

    @property
    def log_volume(self) -> Tensor:
        """log |dz / du|, a scalar."""
        return self.places * self.log_scale.sum()

    @staticmethod
    def sums(q: Normal) -> Tensor:
        """float64 [1 + 2 C]: values of a channel, and sums of E[z] and of E[z^2] under q [B, C, h, w]."""
        mean, variance = q.mean.double(), torch.exp(2 * q.log_scale.double())
        count = torch.full((1,), mean[:, 0].numel(), dtype=torch.float64, device=mean.device)
        return torch.cat([count, mean.sum((0, 2, 3)), (mean.square() + variance).sum((0, 2, 3))])

    def fit(self, sums: Tensor) -> None:
        """Take mean and scale from `sums`, added up over images."""
        mean, square = (sums[1:] / sums[0]).chunk(2)
        scale = (square - mean.square()).clamp(min=1e-12).sqrt()
        self.mean.copy_(mean.reshape(self.mean.shape))
        self.log_scale.copy_(scale.log().reshape(self.log_scale.shape))
