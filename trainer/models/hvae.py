"""The Markovian hierarchical variational autoencoder (source text, equations 22 and 23; Luo 2022, section 2.3)."""

from __future__ import annotations

import itertools
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Len
from pydantic import PositiveInt
from torch import Tensor, nn

from trainer.condition_values import Condition
from trainer.config import Config
from trainer.elbo import Elbo
from trainer.images import ImageSpec
from trainer.likelihoods import LikelihoodConfig
from trainer.likelihoods.discretised import DiscretisedLogisticConfig
from trainer.models.autoencoder import Autoencoder
from trainer.models.conditioned import GivenPrior, beside
from trainer.models.decoding import Decode, DecodeOptions, decoded
from trainer.models.hierarchy import Hierarchy, held
from trainer.models.rates import WeightedRates
from trainer.networks import MlpConfig, NetworkConfig
from trainer.networks.mlp import Activation, mlp
from trainer.networks.residual import zeroed
from trainer.networks.unit import Unit
from trainer.noise import Noise
from trainer.normal import WIDEST, Normal, at_least, at_most, bounded

NARROWEST = -3.0
"""Smallest log-scale of p(z_t | z_t+1): a draw of q at distance d from its mean costs at most d^2 e^6 / 2 nats. Trained
ones are above -2."""
WIDE = 2.0
"""Largest log-scale of q below the top, whose prior has learned scales (up to e^0.8 measured)."""


class HvaeConfig(WeightedRates):
    """T layers of latents, each a normal distribution given the one next to it."""

    SamplingOptions: ClassVar[type[Config]] = DecodeOptions

    kind: Literal["hvae"]
    latents: Annotated[tuple[PositiveInt, ...], Len(1)] = (64, 32)
    """Dimensions of z_1 .. z_T, from the image up; T is their number."""
    encoder: NetworkConfig = MlpConfig()
    """Network of q(z_1 | x)."""
    decoder: NetworkConfig = MlpConfig()
    """Network of p(x | z_1)."""
    hidden: tuple[PositiveInt, ...] = (256, 256)
    """Hidden widths of q(z_t | z_t-1) and p(z_t-1 | z_t), which also have a linear map in parallel; []: that map
    alone."""
    activation: Activation = "silu"
    """Activation of the networks between latents."""
    likelihood: LikelihoodConfig = DiscretisedLogisticConfig()
    """Distribution of the pixels given the decoder's output."""

    def build(self, spec: ImageSpec) -> Hvae:
        return Hvae(self, spec)


class Hvae(Autoencoder, Hierarchy):
    """q(z_1 | x) prod_t q(z_t | z_t-1) and p(z_T) prod_t p(z_t-1 | z_t) p(x | z_1), with p(z_T) = N(0, I).

    With conditions c every factor is given c, p(z_T | c) too.
    """

    def __init__(self, config: HvaeConfig, spec: ImageSpec):
        super().__init__(config, spec, config.latents[0], config.encoder, config.decoder, config.likelihood)
        self.config, self.latents, self.levels = config, config.latents, len(config.latents)
        pairs = list(itertools.pairwise(self.latents))
        more = self.given.width
        self.top = GivenPrior(more, self.latents[-1:])
        self.widest = self._widest(1)  # of q(z_1 | x)
        # [t - 2] is q(z_t | z_t-1) and p(z_t-1 | z_t)
        self.up = nn.ModuleList(Transition(low + more, high, config) for low, high in pairs)
        self.down = nn.ModuleList(Transition(high + more, low, config) for low, high in pairs)

    def ascend(self, first: Normal, noise: Noise, given: Tensor | None = None) -> tuple[list[Normal], list[Tensor]]:
        """From q(z_1 | x): the factors of q and a draw of z_1 .. z_T from them (equation 22)."""
        q, z = [first], [first.sample(self._eps(noise, 1))]
        for level in range(2, self.levels + 1):
            q.append(self.posterior(level, z[-1], given))
            z.append(q[-1].sample(self._eps(noise, level)))
        return q, z

    def posterior(self, level: int, below: Tensor, given: Tensor | None = None) -> Normal:
        """q(z_t | z_t-1) for t = `level` > 1."""
        proposed = self.up[level - 2](beside(below, given))
        return Normal(proposed.mean, at_most(proposed.log_scale, self._widest(level)))

    def priors(self, z: list[Tensor], given: Tensor | None = None) -> list[Normal]:
        """p(z_1 | z_2) .. p(z_T-1 | z_T), p(z_T) (equation 23)."""
        p = [self.prior(level, above, given) for level, above in enumerate(z[1:], start=1)]
        return [*p, self.top(given, z[-1])]

    def prior(self, level: int, above: Tensor, given: Tensor | None = None) -> Normal:
        """p(z_t | z_t+1) for t = `level` < T."""
        p = self.down[level - 1](beside(above, given))
        return Normal(p.mean, at_least(p.log_scale, NARROWEST))

    def forward(self, images: Tensor, condition: Condition, noise: Noise, progress: Tensor) -> Elbo:
        given = self.given(condition, noise)
        q, z = self.ascend(self.encode(images, noise, given), noise, given)
        p = self.priors(z, given)
        distortion = -self.likelihood.log_prob(self.decode(z[0], given), images)  # [B]
        # p(z_t | z_t+1) depends on z_t's own child, so its term has no closed form: log-ratios of the draws [B]
        rates = {f"z{t}": q[t - 1].log_prob(z[t - 1]) - p[t - 1].log_prob(z[t - 1]) for t in range(1, len(z))}
        rates[f"z{len(z)}"] = q[-1].kl(p[-1])  # [B] closed
        return Elbo(distortion, rates, self.config.objective(distortion, rates, progress))

    def sample(
        self,
        noise: Noise,
        condition: Condition = None,
        temperature: float = 1.0,
        shared_levels: int = 0,
        decode: Decode = "sample",
    ) -> Tensor:
        given, eps = self.given(condition, noise), temperature * self._eps(held(noise, shared_levels > 0), self.levels)
        z = self.top(given, eps).sample(eps)
        for level in range(self.levels - 1, 0, -1):
            shared = self.levels - level < shared_levels
            z = self.prior(level, z, given).sample(temperature * self._eps(held(noise, shared), level))
        return decoded(self.likelihood, self.decode(z, given), noise, decode)

    def reconstruct(self, images: Tensor, condition: Condition, noise: Noise, levels: int | None = None) -> Tensor:
        lowest = 0 if levels is None else self.levels - levels
        given = self.given(condition, noise)
        z = self.ascend(self.encode(images, noise, given), noise, given)[1][lowest]
        for level in range(lowest, 0, -1):
            z = self.prior(level, z, given).mean
        return self.likelihood.mean(self.decode(z, given))

    def log_weights(self, images: Tensor, condition: Condition, noise: Noise, k: int) -> Tensor:
        given = self.given(condition, noise)
        first, weights = self.encode(images, noise, given), []
        for draw in range(k):
            q, z = self.ascend(first, noise.with_draw(draw, k), given)
            weight = self.likelihood.log_prob(self.decode(z[0], given), images)
            for q_t, p_t, z_t in zip(q, self.priors(z, given), z, strict=True):
                weight = weight + p_t.log_prob(z_t) - q_t.log_prob(z_t)
            weights.append(weight)
        return torch.stack(weights, dim=1)

    def _widest(self, level: int) -> float:
        """Bound on the log-scale of q(z_t | ...)."""
        return WIDEST if level == self.levels else WIDE

    def _eps(self, noise: Noise, level: int) -> Tensor:
        return noise.normal(f"z{level}", (self.latents[level - 1],))


class Transition(Unit):
    """A normal distribution given a neighbouring latent: [B, inputs] to N(mean, scale^2) of [B, outputs].

    It starts with a linear mean and scale 1: random log-scales would amplify each other along the chain.
    """

    def __init__(self, inputs: int, outputs: int, config: HvaeConfig):
        super().__init__()
        self.linear = nn.Linear(inputs, 2 * outputs)
        with torch.no_grad():
            self.linear.weight[outputs:] = 0
            self.linear.bias[outputs:] = 0
        self.residual: nn.Sequential | None = None
        if config.hidden:
            self.residual = mlp([inputs, *config.hidden, 2 * outputs], config.activation)
            zeroed(self.residual[-1])

    def forward(self, z: Tensor) -> Normal:
        out = self.linear(z)
        if self.residual is not None:
            out = out + self.residual(z)
        mean, log_scale = out.to(z.dtype).chunk(2, dim=1)
        return Normal(mean, bounded(log_scale))
