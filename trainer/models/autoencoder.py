"""Base of the models that encode images to a vector and decode a vector to images."""

from __future__ import annotations

from torch import Tensor

from trainer.images import ImageSpec
from trainer.likelihoods import LikelihoodConfig
from trainer.models.conditioned import ConditionedConfig, GivenResidual, GivenVector, beside
from trainer.models.decoding import DecodingModel
from trainer.networks import NetworkConfig
from trainer.noise import Noise
from trainer.normal import WIDEST, Normal, at_most, bounded


class Autoencoder(DecodingModel):
    """q(z | x) = N(m(x), s(x)^2 I) and p(x | z) for the latent z next to the image, a vector of size `width`.

    Where there are conditions c, these are q(z | x, c) and p(x | z, c).
    """

    widest = WIDEST
    """Bound on the log-scale of q(z | x), for p(z) = N(0, I)."""

    def __init__(
        self,
        config: ConditionedConfig,
        spec: ImageSpec,
        width: int,
        encoder: NetworkConfig,
        decoder: NetworkConfig,
        likelihood: LikelihoodConfig,
    ):
        super().__init__()
        self.spec, self.given = spec, GivenVector(config, spec)
        self.likelihood = likelihood.build(spec)
        self.is_density = self.likelihood.is_density
        self.encoder = encoder.encoder(spec, 2 * width)
        self.informed = GivenResidual(self.given.width, 2 * width)
        self.decoder = decoder.decoder(spec, width + self.given.width, self.likelihood.outputs)

    def encode(self, images: Tensor, noise: Noise, given: Tensor | None = None) -> Normal:
        """q(z | x, c) (equation 19); `given`: the vector of the conditions."""
        out = self.informed(self.encoder(self.spec.scaled(images, noise.dtype)), given)
        mean, log_scale = out.to(noise.dtype).chunk(2, dim=1)
        return Normal(mean, at_most(bounded(log_scale), self.widest))

    def decode(self, z: Tensor, given: Tensor | None = None) -> Tensor:
        """The parameters of p(x | z, c), in the dtype of z also under autocast."""
        return self.decoder(beside(z, given)).to(z.dtype)
