"""The learned part of a diffusion model: from z and its noise level to estimates of x and eps."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from trainer.condition_values import Condition
from trainer.config import Config
from trainer.images import ImageSpec
from trainer.models.diffusion.conditioning import Conditioning
from trainer.models.diffusion.predictions import LevelsConfig, PredictionConfig
from trainer.networks.conditioning import ConditionConfig
from trainer.networks.denoiser_mlp import DenoiserMlpConfig
from trainer.networks.dit import DitConfig
from trainer.networks.unet import UnetConfig
from trainer.networks.vdm_unet import VdmUnetConfig
from trainer.noise import Noise
from trainer.samplers.base import Denoised

DenoiserNetworkConfig = Annotated[
    DenoiserMlpConfig | UnetConfig | VdmUnetConfig | DitConfig, Field(discriminator="kind")
]


class DenoiserConfig(Config):
    """The network that estimates the clean image, and what it is conditioned on."""

    network: DenoiserNetworkConfig = DenoiserMlpConfig()
    """The network, chosen by `kind`."""
    prediction: PredictionConfig = LevelsConfig(kind="levels")
    """Meaning of the network's output."""
    fourier: tuple[NonNegativeInt, ...] = ()
    """Exponents n of the Fourier features sin(2^n pi z), cos(2^n pi z) that the network gets beside z (VDM: 7 and
    8)."""
    embedding: PositiveInt = 128
    """Width of the embedding of noise level and conditions."""
    conditions: dict[str, ConditionConfig] = {}
    """What the model is conditioned on, by the names of `data.conditions`: `label: {kind: class}`."""

    def build(self, shape: tuple[int, int, int], images: ImageSpec, latent: bool = False) -> Denoiser:
        """For z of shape (C, H, W): noisy images of the data set unless they are `latent`."""
        return Denoiser(self, shape, images, latent)


class Denoiser(nn.Module):
    """Network, noise-level embedding and conditions, and the conversion of the output to estimates of x and eps.

    The network may run in bfloat16; the estimates have the dtype of z.
    """

    def __init__(self, config: DenoiserConfig, shape: tuple[int, int, int], images: ImageSpec, latent: bool):
        super().__init__()
        _check_patches(config.network, images)
        self.fourier = config.fourier
        self.prediction = config.prediction.build(None if latent else images)
        self.conditioning = Conditioning(config.embedding, config.conditions, images)
        inputs = shape[0] * (1 + 2 * len(config.fourier))
        outputs = shape[0] * self.prediction.outputs_per_channel
        self.network = config.network.build(
            shape, inputs, outputs, config.embedding, self.conditioning.conditions.text_width
        )

    def forward(self, z: Tensor, gamma: Tensor, condition: Condition, noise: Noise) -> Denoised:
        """Estimates of x and eps [B, C, H, W] from z [B, C, H, W] at gamma [B]."""
        features = [z]
        for exponent in self.fourier:  # VDM, appendix C: they resolve differences of less than a level
            angle = 2**exponent * math.pi * z
            features += [angle.sin(), angle.cos()]
        embedding, text = self.conditioning(gamma, condition, noise)
        output = self.network(torch.cat(features, 1), embedding, noise, text)
        return self.prediction(output.to(z.dtype), z, gamma)


def _check_patches(network: DenoiserNetworkConfig, images: ImageSpec) -> None:
    """Raises ValueError unless the network takes the images, where these are in patches."""
    if images.patches is None:
        return
    if not isinstance(network, DitConfig):
        raise ValueError(
            f"denoiser.network.kind: {network.kind} takes images of one size; set data.transform.size: [height, width] "
            "instead of data.transform.patches, or use dit"
        )
    if network.layout:
        raise ValueError("denoiser.network.layout: needs images of one size; leave it out with data.transform.patches")
    if network.patch != images.patches.side:
        raise ValueError(f"denoiser.network.patch: is {network.patch}; data.transform.patch is {images.patches.side}")
