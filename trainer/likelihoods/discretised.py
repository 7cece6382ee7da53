"""Probabilities of grey levels: the mass that a continuous distribution puts into each level's cell.

The cell of level v is [x - 1/L, x + 1/L] around x = 2 (v + 1/2) / L - 1; the first and the last are open to the
outside, so that the L probabilities sum to one (Salimans et al. 2017, PixelCNN++, section 2.1).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.ans.cumulative import Cells, Cumulative, parameters
from trainer.ans.tails import LOGISTIC, NORMAL, Tail
from trainer.config import Config
from trainer.images import ImageSpec
from trainer.likelihoods.base import Likelihood
from trainer.noise import Noise
from trainer.normal import bounded

INITIAL_LOG_SCALE = -1.0  # of a decoder that outputs zeros: wide compared with a cell, so that no gradient vanishes


class DiscretisedLogisticConfig(Config):
    """A logistic distribution with the decoder's mean and scale for every value."""

    kind: Literal["discretised_logistic"] = "discretised_logistic"

    def build(self, spec: ImageSpec) -> DiscretisedLogistic:
        return DiscretisedLogistic(spec)


class DiscretisedGaussianConfig(Config):
    """A normal distribution with the decoder's mean and scale for every value."""

    kind: Literal["discretised_gaussian"] = "discretised_gaussian"

    def build(self, spec: ImageSpec) -> DiscretisedGaussian:
        return DiscretisedGaussian(spec)


class Discretised(Likelihood):
    """The decoder's output is the mean of x and, below it along the channels, the log-scale less its initial value."""

    outputs_per_channel = 2
    tail: Tail  # of the standard distribution, for entropy coding

    def log_mass(self, low: Tensor, high: Tensor) -> Tensor:
        """log(cdf(high) - cdf(low)) of the standard distribution, low < high."""
        raise NotImplementedError

    def log_cdf(self, x: Tensor) -> Tensor:
        """log cdf of the standard distribution."""
        raise NotImplementedError

    def quantile(self, u: Tensor) -> Tensor:
        """The inverse of the standard distribution's cdf."""
        raise NotImplementedError

    def log_prob(self, output: Tensor, levels: Tensor) -> Tensor:
        mean, log_scale = self._mean_and_log_scale(output)
        return self.log_prob_values(mean, log_scale, levels).flatten(1).sum(1)

    def log_prob_values(self, mean: Tensor, log_scale: Tensor, levels: Tensor) -> Tensor:
        """log p of every value, nats, of the common shape of the three arguments."""
        last = self.spec.levels - 1
        centred, inverse = self.spec.cell_centre(levels, mean.dtype) - mean, torch.exp(-log_scale)
        low, high = (centred - 1 / self.spec.levels) * inverse, (centred + 1 / self.spec.levels) * inverse
        inside = self.log_mass(low, high)
        return torch.where(levels == 0, self.log_cdf(high), torch.where(levels == last, self.log_cdf(-low), inside))

    def cumulative(self, output: Tensor, levels: Tensor, channels: slice) -> Cumulative:
        mean, log_scale = (part[:, channels] for part in self._mean_and_log_scale(output))
        return self.cumulative_values(mean, log_scale)

    def cumulative_values(self, mean: Tensor, log_scale: Tensor) -> Cumulative:
        """p of the levels in integers, for two arguments of one shape."""
        scales = parameters(mean), parameters(torch.exp(-log_scale))
        return Cells(self.tail, *scales, 2 / self.spec.levels, self.spec.levels)

    def mean(self, output: Tensor) -> Tensor:
        return self.spec.nearest_cell(self._mean_and_log_scale(output)[0])

    def sample(self, output: Tensor, noise: Noise) -> Tensor:
        return self.sample_values(*self._mean_and_log_scale(output), noise)

    def sample_values(self, mean: Tensor, log_scale: Tensor, noise: Noise) -> Tensor:
        """Levels uint8 [B, C, H, W], for a mean of that shape."""
        u = noise.uniform("x", self.spec.shape).clamp(2.0**-25, 1 - 2.0**-24)
        return self.spec.nearest_cell(mean + torch.exp(log_scale) * self.quantile(u))

    def _mean_and_log_scale(self, output: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_scale = output.chunk(2, dim=1)
        return mean, bounded(log_scale + INITIAL_LOG_SCALE, 7.0)


class DiscretisedLogistic(Discretised):
    """cdf(x) = sigmoid(x)."""

    tail = LOGISTIC

    def log_mass(self, low: Tensor, high: Tensor) -> Tensor:
        # sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - e^(a - b)): no cancellation anywhere
        return F.logsigmoid(high) + F.logsigmoid(-low) + torch.log(-torch.expm1(low - high))

    def log_cdf(self, x: Tensor) -> Tensor:
        return F.logsigmoid(x)

    def quantile(self, u: Tensor) -> Tensor:
        return torch.logit(u)


class DiscretisedGaussian(Discretised):
    """cdf(x) = Phi(x)."""

    tail = NORMAL

    def log_mass(self, low: Tensor, high: Tensor) -> Tensor:
        # The mirrored cell has the same mass; on the left tail it is computed without cancellation.
        right = low > 0
        low, high = torch.where(right, -high, low), torch.where(right, -low, high)
        log_high = torch.special.log_ndtr(high)
        return log_high + torch.log(-torch.expm1(torch.special.log_ndtr(low) - log_high))

    def log_cdf(self, x: Tensor) -> Tensor:
        return torch.special.log_ndtr(x)

    def quantile(self, u: Tensor) -> Tensor:
        return torch.special.ndtri(u)
