"""Training objectives that weigh the rates of a model: beta, KL warm-up, free bits, balancing.

The reported bound does not change. Everything here is a function of one image's own rates, independent of how a batch
is split.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat
from torch import Tensor

from trainer.models.conditioned import ConditionedConfig


class WeightedRates(ConditionedConfig):
    """The part of a model's configuration that weighs its rates in the objective."""

    beta: PositiveFloat = 1.0
    """Weight of the rates in the objective (Higgins et al. 2017). Below 1 for a first stage that keeps detail. The
    reported bound has weight 1."""
    kl_warmup: NonNegativeInt = 0
    """Images over which the weight of the rates in the objective rises from 0 to `beta`."""
    free_bits: NonNegativeFloat = 0.0
    """Nats per image that each level may use at no cost in the objective (Kingma et al. 2016, IAF, section 5)."""

    def objective(self, distortion: Tensor, rates: dict[str, Tensor], progress: Tensor) -> Tensor | None:
        """[B] nats to minimise, or None for the bound itself; `progress` is the number of images seen."""
        if not self.kl_warmup and not self.free_bits and self.beta == 1:
            return None
        spent = torch.stack(list(rates.values()), dim=1)  # [B, T]
        return distortion + self.warmth(progress, spent) * self.charged(spent).sum(dim=1)

    def charged(self, rates: Tensor) -> Tensor:
        """The rates [B, T], clamped from below at the free bits: no gradient under that."""
        return rates.clamp(min=self.free_bits) if self.free_bits else rates

    def warmth(self, progress: Tensor, like: Tensor) -> Tensor | float:
        """The weight of the rates, from 0 to beta, of the type of `like` (Sonderby et al. 2016, ladder VAE)."""
        return self.beta * (progress / self.kl_warmup).clamp(max=1).to(like.dtype) if self.kl_warmup else self.beta


def balance(rates: Tensor, sizes: Sequence[int]) -> Tensor:
    """[B, T]: weights of mean 1 over the levels, which equalise the rate per latent dimension.

    A level that spends more than others for its size (latent dimensions) weighs more. No gradient flows through the
    weights (Vahdat and Kautz 2020, NVAE, appendix A, with the rates [B, T] of the image itself where the paper
    averages over the batch).
    """
    spent = rates.detach().clamp(min=0) + 0.01
    weights = torch.stack([level / size for level, size in zip(spent.unbind(1), sizes, strict=True)], dim=1)
    return weights / weights.mean(dim=1, keepdim=True)
