"""The variational autoencoder (Kingma and Welling 2014; source text, equations 16-21)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor

from trainer.condition_values import Condition
from trainer.config import Config
from trainer.elbo import Elbo
from trainer.images import ImageSpec
from trainer.likelihoods import LikelihoodConfig
from trainer.likelihoods.discretised import DiscretisedLogisticConfig
from trainer.models.autoencoder import Autoencoder
from trainer.models.decoding import Decode, DecodeOptions, decoded
from trainer.models.rates import WeightedRates
from trainer.networks import MlpConfig, NetworkConfig
from trainer.noise import Noise
from trainer.normal import Normal


class VaeConfig(WeightedRates):
    """One layer of latents with a standard normal prior."""

    SamplingOptions: ClassVar[type[Config]] = DecodeOptions

    kind: Literal["vae"]
    latent: PositiveInt = 32
    """Dimensions of z."""
    encoder: NetworkConfig = MlpConfig()
    """Network of q(z | x)."""
    decoder: NetworkConfig = MlpConfig()
    """Network of p(x | z)."""
    likelihood: LikelihoodConfig = DiscretisedLogisticConfig()
    """Distribution of the pixels given the decoder's output."""

    def build(self, spec: ImageSpec) -> Vae:
        return Vae(self, spec)


class Vae(Autoencoder):
    """q(z | x) = N(m(x), s(x)^2 I), p(z) = N(0, I), p(x | z) any likelihood."""

    def __init__(self, config: VaeConfig, spec: ImageSpec):
        super().__init__(spec, config.latent, config.encoder, config.decoder, config.likelihood)
        self.config, self.latent = config, config.latent

    def forward(self, images: Tensor, condition: Condition, noise: Noise, progress: Tensor) -> Elbo:
        q = self.encode(images, noise)
        z = q.sample(noise.normal("z1", (self.latent,)))  # (21)
        distortion = -self.likelihood.log_prob(self.decode(z), images)  # [B]
        rates = {"z1": q.kl(Normal.standard(q.mean))}  # [B]  (18)
        return Elbo(distortion, rates, self.config.objective(distortion, rates, progress))

    def sample(
        self, noise: Noise, condition: Condition = None, temperature: float = 1.0, decode: Decode = "sample"
    ) -> Tensor:
        output = self.decode(temperature * noise.normal("z1", (self.latent,)))
        return decoded(self.likelihood, output, noise, decode)

    def reconstruct(self, images: Tensor, condition: Condition, noise: Noise) -> Tensor:
        q = self.encode(images, noise)
        return self.likelihood.mean(self.decode(q.sample(noise.normal("z1", (self.latent,)))))

    def log_weights(self, images: Tensor, condition: Condition, noise: Noise, k: int) -> Tensor:
        q = self.encode(images, noise)
        p = Normal.standard(q.mean)
        weights = []
        for draw in range(k):
            z = q.sample(noise.with_draw(draw, k).normal("z1", (self.latent,)))
            weights.append(self.likelihood.log_prob(self.decode(z), images) + p.log_prob(z) - q.log_prob(z))
        return torch.stack(weights, dim=1)
