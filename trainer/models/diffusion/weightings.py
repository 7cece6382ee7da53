"""Weights of the diffusion loss over the noise levels, for training only; the bound that is reported has none.

Each gives w in 1/2 w(gamma) gamma'(t) |eps - eps'|^2, t uniform, so that w = 1 is the bound itself (Kingma and Gao
2023, arXiv 2303.00848, table 1, where lambda = -gamma).
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from trainer.config import Config


class BoundConfig(Config):
    """w = 1: the evidence lower bound."""

    kind: Literal["bound"] = "bound"

    def weight(self, gamma: Tensor, slope: Tensor) -> Tensor | None:
        return None


class SimpleConfig(Config):
    """The squared error of eps, evenly over t (Ho et al. 2020, arXiv 2006.11239, equation 14)."""

    kind: Literal["simple"]

    def weight(self, gamma: Tensor, slope: Tensor) -> Tensor | None:
        return 1 / slope


class MinSnrConfig(Config):
    """min(SNR, limit) times the squared error of x, evenly over t (Hang et al. 2023, arXiv 2303.09556)."""

    kind: Literal["min_snr"]
    limit: PositiveFloat = 5.0
    """Upper bound on the SNR."""

    def weight(self, gamma: Tensor, slope: Tensor) -> Tensor | None:
        return (self.limit * torch.exp(gamma)).clamp(max=1) / slope


class SigmoidConfig(Config):
    """w = sigmoid(gamma + shift) (Kingma and Gao 2023; Hoogeboom et al. 2024, arXiv 2410.19324)."""

    kind: Literal["sigmoid"]
    shift: float = 2.0
    """Shift of gamma."""

    def weight(self, gamma: Tensor, slope: Tensor) -> Tensor | None:
        return torch.sigmoid(gamma + self.shift)


class EdmConfig(Config):
    """Karras et al. 2022 (arXiv 2206.00364), table 1: log sigma normal, and the loss level over it at the start."""

    kind: Literal["edm"]
    mean: float = -1.2
    """Mean of ln(sigma / alpha)."""
    scale: PositiveFloat = 1.2
    """Standard deviation of ln(sigma / alpha)."""
    data_scale: PositiveFloat = 0.5
    """Standard deviation of x."""

    def weight(self, gamma: Tensor, slope: Tensor) -> Tensor | None:
        density = torch.exp(-0.5 * ((0.5 * gamma - self.mean) / self.scale).square())
        return density * (torch.exp(gamma) / self.data_scale**2 + 1)


WeightingConfig = Annotated[
    BoundConfig | SimpleConfig | MinSnrConfig | SigmoidConfig | EdmConfig, Field(discriminator="kind")
]
