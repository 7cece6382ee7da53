"""Base of the models that encode images to one latent, a vector or maps, and decode it to images."""

from __future__ import annotations

from pydantic import PositiveInt
from torch import Tensor

from trainer.config import Config
from trainer.images import ImageSpec
from trainer.likelihoods import LikelihoodConfig
from trainer.models.conditioned import ConditionedConfig, GivenResidual, GivenShift, GivenVector, beside
from trainer.models.decoding import DecodingModel
from trainer.networks import NetworkConfig, ResnetConfig
from trainer.noise import Noise
from trainer.normal import WIDEST, Normal, at_most, bounded


class MapsConfig(Config):
    """A latent in maps, [channels, H / downsample, W / downsample]."""

    channels: PositiveInt = 4
    """Channels of the maps."""
    downsample: PositiveInt = 8
    """Height and width of the image over those of the maps: 1, 2, 4, 8 ...; the networks have as many resolutions."""


class Autoencoder(DecodingModel):
    """q(z | x) = N(m(x), s(x)^2 I) and p(x | z) for the latent z next to the image, of shape `latent_shape`.

    Where there are conditions c, these are q(z | x, c) and p(x | z, c).
    """

    widest = WIDEST
    """Bound on the log-scale of q(z | x), for p(z) = N(0, I)."""

    def __init__(
        self,
        config: ConditionedConfig,
        spec: ImageSpec,
        latent: int | MapsConfig,
        encoder: NetworkConfig,
        decoder: NetworkConfig,
        likelihood: LikelihoodConfig,
    ):
        """Raises ValueError, named by the key, if the networks do not make maps of the size of the latent."""
        super().__init__()
        self.spec, self.given = spec, GivenVector(config, spec)
        self.likelihood = likelihood.build(spec)
        self.is_density = self.likelihood.is_density
        more, outputs = self.given.width, self.likelihood.outputs
        self.latent_shape: tuple[int, ...]
        self.informed: GivenResidual | GivenShift
        if isinstance(latent, MapsConfig):
            down, up = _of_maps("encoder", encoder, latent), _of_maps("decoder", decoder, latent)
            self.latent_shape = latent.channels, *down.map_sides(spec)
            self.encoder = down.map_encoder(spec, 2 * latent.channels)
            self.informed = GivenShift(more, 2 * latent.channels)
            self.decoder = up.map_decoder(spec, latent.channels + more, outputs)
        else:
            self.latent_shape = (latent,)
            self.encoder = encoder.encoder(spec, 2 * latent)
            self.informed = GivenResidual(more, 2 * latent)
            self.decoder = decoder.decoder(spec, latent + more, outputs)

    def encode(self, images: Tensor, noise: Noise, given: Tensor | None = None) -> Normal:
        """q(z | x, c) (equation 19); `given`: the vector of the conditions."""
        out = self.informed(self.encoder(self.spec.scaled(images, noise.dtype)), given)
        mean, log_scale = out.to(noise.dtype).chunk(2, dim=1)
        return Normal(mean, at_most(bounded(log_scale), self.widest))

    def decode(self, z: Tensor, given: Tensor | None = None) -> Tensor:
        """The parameters of p(x | z, c), in the dtype of z also under autocast."""
        return self.decoder(beside(z, given)).to(z.dtype)


def _of_maps(key: str, network: NetworkConfig, latent: MapsConfig) -> ResnetConfig:
    """The network `key`, which makes or takes the maps. Raises ValueError if it cannot."""
    if not isinstance(network, ResnetConfig):
        raise ValueError(f"{key}.kind: {network.kind} is for latent vectors; maps (latent.downsample) need resnet")
    if network.downsample != latent.downsample:
        raise ValueError(
            f"{key}.channels: {len(network.channels)} resolutions reduce height and width by {network.downsample}; "
            f"latent.downsample is {latent.downsample}"
        )
    return network
