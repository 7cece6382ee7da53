"""Encoders and decoders, one file each; the configuration chooses by `kind`."""

from typing import Annotated

from pydantic import Field

from trainer.networks.conv import ConvConfig
from trainer.networks.mlp import MlpConfig
from trainer.networks.resnet import ResnetConfig

NetworkConfig = Annotated[MlpConfig | ConvConfig | ResnetConfig, Field(discriminator="kind")]

__all__ = ["ConvConfig", "MlpConfig", "NetworkConfig", "ResnetConfig"]
