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
from trainer.models.autoencoder import Autoencoder, MapsConfig
from trainer.models.conditioned import GivenPrior
from trainer.models.decoding import Decode, DecodeOptions, decoded
from trainer.models.rates import WeightedRates
from trainer.networks import MlpConfig, NetworkConfig
from trainer.noise import Noise


class VaeConfig(WeightedRates):
    """One layer of latents with a standard normal prior."""

    SamplingOptions: ClassVar[type[Config]] = DecodeOptions

    kind: Literal["vae"]
    latent: PositiveInt | MapsConfig = 32
    """Dimensions of z; or maps, as a first stage of `latent` has them: `latent: {channels: 4, downsample: 8}`."""
    encoder: NetworkConfig = MlpConfig()
    """Network of q(z | x)."""
    decoder: NetworkConfig = MlpConfig()
    """Network of p(x | z)."""
    likelihood: LikelihoodConfig = DiscretisedLogisticConfig()
    """Distribution of the pixels given the decoder's output."""

    def build(self, spec: ImageSpec) -> Vae:
        return Vae(self, spec)


class Vae(Autoencoder):
    """q(z | x) = N(m(x), s(x)^2 I), p(z) = N(0, I), p(x | z) any likelihood; with conditions c all three given c."""

    def __init__(self, config: VaeConfig, spec: ImageSpec):
        super().__init__(config, spec, config.latent, config.encoder, config.decoder, config.likelihood)
        self.config = config
        self.prior = GivenPrior(self.given.width, self.latent_shape)

    def forward(self, images: Tensor, condition: Condition, noise: Noise, progress: Tensor) -> Elbo:
        given = self.given(condition, noise)
        q = self.encode(images, noise, given)
        z = q.sample(noise.normal("z1", self.latent_shape))  # (21)
        distortion = -self.likelihood.log_prob(self.decode(z, given), images)  # [B]
        rates = {"z1": q.kl(self.prior(given, z))}  # [B]  (18)
        return Elbo(distortion, rates, self.config.objective(distortion, rates, progress))

    def sample(
        self, noise: Noise, condition: Condition = None, temperature: float = 1.0, decode: Decode = "sample"
    ) -> Tensor:
        given, eps = self.given(condition, noise), temperature * noise.normal("z1", self.latent_shape)
        output = self.decode(self.prior(given, eps).sample(eps), given)
        return decoded(self.likelihood, output, noise, decode)

    def reconstruct(self, images: Tensor, condition: Condition, noise: Noise) -> Tensor:
        given = self.given(condition, noise)
        z = self.encode(images, noise, given).sample(noise.normal("z1", self.latent_shape))
        return self.likelihood.mean(self.decode(z, given))

    def log_weights(self, images: Tensor, condition: Condition, noise: Noise, k: int) -> Tensor:
        given = self.given(condition, noise)
        q = self.encode(images, noise, given)
        p = self.prior(given, q.mean)
        weights = []
        for draw in range(k):
            z = q.sample(noise.with_draw(draw, k).normal("z1", self.latent_shape))
            weights.append(self.likelihood.log_prob(self.decode(z, given), images) + p.log_prob(z) - q.log_prob(z))
        return torch.stack(weights, dim=1)
