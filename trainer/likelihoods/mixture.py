"""Mixtures of discretised logistics whose colours depend on each other (Salimans et al. 2017, PixelCNN++, 2.1-2.2)."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
from pydantic import PositiveInt
from torch import Tensor

from trainer.ans.cumulative import Cumulative, MixtureCells, parameters
from trainer.config import Config
from trainer.images import ImageSpec
from trainer.likelihoods.base import Likelihood
from trainer.likelihoods.discretised import INITIAL_LOG_SCALE, DiscretisedLogistic
from trainer.noise import Noise
from trainer.normal import bounded


class LogisticMixtureConfig(Config):
    """One mixture for all channels of a pixel; within a component a channel's mean is linear in those before it."""

    kind: Literal["logistic_mixture"] = "logistic_mixture"
    components: PositiveInt = 10
    """Components of each mixture."""

    def build(self, spec: ImageSpec) -> LogisticMixture:
        return LogisticMixture(spec, self.components)


class MixtureParameters(NamedTuple):
    """K components of C channels at every pixel."""

    log_weights: Tensor  # [B, K, H, W]
    means: Tensor  # [B, K, C, H, W]  of x, but for what the channels before it add
    log_scales: Tensor  # [B, K, C, H, W]
    coupling: Tensor  # [B, K, C, C, H, W]: how the mean of a channel moves with each channel before it, else 0


class LogisticMixture(Likelihood):
    """p(pixel) = sum_k w_k prod_c logistic(x_c; m_kc + sum_{d<c} a_kcd x_d, s_kc), each a probability of levels."""

    def __init__(self, spec: ImageSpec, components: int):
        super().__init__(spec)
        self.components = components
        self.channel = DiscretisedLogistic(spec)
        self.pairs = [(c, d) for c in range(spec.channels) for d in range(c)]

    @property
    def outputs(self) -> int:
        """K (1 + 2 C + C (C - 1) / 2): 10 K for colour."""
        return self.components * (1 + 2 * self.spec.channels + len(self.pairs))

    def log_prob(self, output: Tensor, levels: Tensor) -> Tensor:
        mixture = self.mixture(output)
        x = self.spec.cell_centre(levels, output.dtype)
        # no matrix product: autocast would round it to bfloat16
        means = mixture.means + (mixture.coupling * x[:, None, None]).sum(3)
        log_probs = self.channel.log_prob_values(means, mixture.log_scales, levels[:, None]).sum(2)  # [B, K, H, W]
        return torch.logsumexp(mixture.log_weights + log_probs, dim=1).flatten(1).sum(1)

    @property
    def coded_channels(self) -> list[slice]:
        """One after another: the weights of the components given a channel depend on those before it."""
        return [slice(c, c + 1) for c in range(self.spec.channels)]

    def cumulative(self, output: Tensor, levels: Tensor, channels: slice) -> Cumulative:
        mixture, c = self.mixture(output), channels.start
        known = levels[:, None, :c]
        x = self.spec.cell_centre(known, output.dtype)
        means = mixture.means[:, :, c] + (mixture.coupling[:, :, c, :c] * x).sum(2)  # [B, K, H, W]
        before = mixture.means[:, :, :c] + (mixture.coupling[:, :, :c, :c] * x[:, :, None]).sum(3)
        seen = self.channel.log_prob_values(before, mixture.log_scales[:, :, :c], known).sum(2)
        weights = (mixture.log_weights + seen).softmax(1)  # of the components, given the channels before
        scales = torch.exp(-mixture.log_scales[:, :, c])
        w, m, s = (np.stack([parameters(one) for one in part.unbind(1)]) for part in (weights, means, scales))
        return MixtureCells(w, m, s, 2 / self.spec.levels, self.spec.levels)  # of [K, B, n] each

    def mean(self, output: Tensor) -> Tensor:
        """Of the likeliest component at each pixel; the mean of all would mix colours that the components separate."""
        return self._channels(self._component(self.mixture(output), None), None)

    def sample(self, output: Tensor, noise: Noise) -> Tensor:
        u = noise.uniform("component", (self.components, *self.spec.shape[1:])).clamp(2.0**-25, 1 - 2.0**-24)
        v = noise.uniform("x", self.spec.shape).clamp(2.0**-25, 1 - 2.0**-24)
        return self._channels(self._component(self.mixture(output), u), v)

    def mixture(self, output: Tensor) -> MixtureParameters:
        """The parameters in the decoder's output [B, outputs, H, W]; zeros give the initial scale and no coupling."""
        K, C = self.components, self.spec.channels
        parts = output.unflatten(1, (K, -1))  # [B, K, 1 + 2 C + pairs, H, W]
        coupling = output.new_zeros(len(output), K, C, C, *output.shape[2:])
        for i, (c, d) in enumerate(self.pairs):
            coupling[:, :, c, d] = torch.tanh(parts[:, :, 1 + 2 * C + i])
        log_scales = bounded(parts[:, :, 1 + C : 1 + 2 * C] + INITIAL_LOG_SCALE, 7.0)
        return MixtureParameters(parts[:, :, 0].log_softmax(1), parts[:, :, 1 : 1 + C], log_scales, coupling)

    def _component(self, mixture: MixtureParameters, u: Tensor | None) -> MixtureParameters:
        """One component at each pixel: the likeliest, or with u in (0, 1) [B, K, H, W] a draw (Gumbel 1954)."""
        score = mixture.log_weights if u is None else mixture.log_weights - torch.log(-torch.log(u))
        index = score.argmax(1)[:, None]  # [B, 1, H, W]

        def chosen(values: Tensor) -> Tensor:
            shape = [*values.shape[:1], 1, *values.shape[2:]]
            place = index.reshape(len(index), 1, *[1] * (values.dim() - 4), *index.shape[2:])
            return values.gather(1, place.expand(shape))

        return MixtureParameters(*(chosen(values) for values in mixture))

    def _channels(self, one: MixtureParameters, v: Tensor | None) -> Tensor:
        """Levels, channel after channel: the component's means, or with v in (0, 1) [B, C, H, W] draws from it."""
        levels: list[Tensor] = []
        for c in range(self.spec.channels):
            x = one.means[:, 0, c]
            for d, level in enumerate(levels):
                x = x + one.coupling[:, 0, c, d] * self.spec.cell_centre(level, x.dtype)
            if v is not None:
                x = x + torch.exp(one.log_scales[:, 0, c]) * self.channel.quantile(v[:, c])
            levels.append(self.spec.nearest_cell(x))
        return torch.stack(levels, dim=1)
