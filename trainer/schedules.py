"""Noise schedules: callables t -> (gamma, slope), with gamma(t) = -log SNR rising from t = 0 to t = 1.

alpha^2 = sigmoid(-gamma) and sigma^2 = sigmoid(gamma), so that alpha^2 + sigma^2 = 1 (Kingma et al. 2021, VDM,
arXiv 2107.00630, equation 4 and section 4).
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from trainer.config import Config

SMALLEST_DENSITY = 0.02  # of a learned schedule; 1 is linear, so slopes stay below 50 times the linear one


class _ScheduleConfig(Config):
    gamma_0: float = -13.3
    """-log SNR of the least noisy latent z_0; -13.3 leaves 0.01 bits per dimension of 8-bit images to p(x | z_0)."""
    gamma_1: float = 5.0
    """-log SNR of the noisiest latent z_1, which the prior N(0, I) must match."""
    learn_ends: bool = False
    """Learn gamma_0 and gamma_1 too, by the bound."""

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if self.gamma_1 <= self.gamma_0:
            raise ValueError(f"gamma_1 = {self.gamma_1} must be above gamma_0 = {self.gamma_0}")
        return self


class LinearConfig(_ScheduleConfig):
    """gamma is a line in t."""

    kind: Literal["linear"] = "linear"

    def build(self) -> NoiseSchedule:
        return Linear(self)


class CosineConfig(_ScheduleConfig):
    """alpha is a cosine of t (Nichol and Dhariwal 2021, arXiv 2102.09672), cut off at the two ends."""

    kind: Literal["cosine"] = "cosine"

    def build(self) -> NoiseSchedule:
        return Cosine(self)


class LearnedConfig(_ScheduleConfig):
    """Monotone and piecewise linear; the shape learns to make the bound's variance small (VDM, appendix I.2)."""

    kind: Literal["learned"] = "learned"
    learn_ends: bool = True
    """Learn gamma_0 and gamma_1 too, by the bound."""
    pieces: PositiveInt = 32
    """Number of pieces, of equal length in gamma."""

    def build(self) -> NoiseSchedule:
        return Learned(self)


NoiseScheduleConfig = Annotated[LinearConfig | CosineConfig | LearnedConfig, Field(discriminator="kind")]


class NoiseSchedule(nn.Module):
    """gamma(t) = gamma_0 + (gamma_1 - gamma_0) u(t), with u rising from 0 to 1."""

    def __init__(self, config: _ScheduleConfig):
        super().__init__()
        ends = torch.tensor([config.gamma_0, config.gamma_1])
        if config.learn_ends:
            self.ends: Tensor = nn.Parameter(ends)
        else:
            self.register_buffer("ends", ends)

    def unit(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """u(t) and du/dt, of the shape of t."""
        raise NotImplementedError

    def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """-log SNR at times t in [0, 1] and its derivative by t, both of the shape of t."""
        u, slope = self.unit(t)
        gamma_0, gamma_1 = self.ends.to(t.dtype)
        return gamma_0 + (gamma_1 - gamma_0) * u, (gamma_1 - gamma_0) * slope

    def variance_objective(self, gamma: Tensor, loss: Tensor) -> Tensor | None:
        """[B] zeros whose gradient moves the shape towards a small variance of `loss` [B]; None: nothing to learn."""
        return None


class Linear(NoiseSchedule):
    """u(t) = t."""

    def unit(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return t, torch.ones_like(t)


class Cosine(NoiseSchedule):
    """gamma = 2 log tan(pi r / 2), with r in the part of [0, 1] between the two ends."""

    def __init__(self, config: CosineConfig):
        super().__init__(config)
        self.low, self.high = config.gamma_0, config.gamma_1
        self.first, self.last = (2 / math.pi * math.atan(math.exp(gamma / 2)) for gamma in (self.low, self.high))

    def unit(self, t: Tensor) -> tuple[Tensor, Tensor]:
        r = self.first + (self.last - self.first) * t
        u = (2 * torch.log(torch.tan(math.pi / 2 * r)) - self.low) / (self.high - self.low)
        slope = 2 * math.pi / torch.sin(math.pi * r) * (self.last - self.first) / (self.high - self.low)
        return u, slope


class Learned(NoiseSchedule):
    """The inverse function t(u) is the cumulative sum of a piecewise constant density p(u).

    The continuous-time bound is the integral of a loss e(gamma) / 2 over gamma, whatever the shape; sampling t evenly
    samples u from p. The second moment of the estimate e / 2p is the integral of e^2 / 4p, and its derivative by the
    parameters of p is -E[(e / 2p)^2 grad log p]: it needs the value of each image's loss, but not its gradient. So
    the variance is minimised without a pass through the denoiser (VDM squares the loss and differentiates it).
    """

    logits: Tensor

    def __init__(self, config: LearnedConfig):
        super().__init__(config)
        self.logits = nn.Parameter(torch.zeros(config.pieces))

    def density(self) -> Tensor:
        """[pieces] p(u), of mean 1."""
        share = torch.softmax(self.logits, 0)
        return (1 - SMALLEST_DENSITY) * share * len(share) + SMALLEST_DENSITY

    def unit(self, t: Tensor) -> tuple[Tensor, Tensor]:
        density = self.density().detach().to(t.dtype)
        pieces = len(density)
        ends = torch.cumsum(density, 0) / pieces
        piece = torch.searchsorted(ends, t.detach().contiguous()).clamp(max=pieces - 1)
        p = density[piece]
        return (piece + 1 - (ends[piece] - t) * pieces / p) / pieces, 1 / p

    def variance_objective(self, gamma: Tensor, loss: Tensor) -> Tensor | None:
        gamma_0, gamma_1 = self.ends.detach().to(gamma.dtype)
        u = (gamma.detach() - gamma_0) / (gamma_1 - gamma_0)
        pieces = len(self.logits)
        log_p = torch.log(self.density())[(u * pieces).long().clamp(0, pieces - 1)].to(loss.dtype)
        return loss.detach().square() * (log_p.detach() - log_p)
