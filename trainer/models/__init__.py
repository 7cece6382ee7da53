"""Models, one file each; the configuration chooses by `kind`."""

from typing import Annotated

from pydantic import Field

from trainer.models.base import Condition, Model
from trainer.models.diffusion import DiffusionConfig
from trainer.models.hvae import HvaeConfig
from trainer.models.ladder import LadderConfig
from trainer.models.latent import LatentConfig
from trainer.models.vae import VaeConfig

ModelConfig = Annotated[
    VaeConfig | HvaeConfig | LadderConfig | DiffusionConfig | LatentConfig, Field(discriminator="kind")
]

__all__ = [
    "Condition",
    "DiffusionConfig",
    "HvaeConfig",
    "LadderConfig",
    "LatentConfig",
    "Model",
    "ModelConfig",
    "VaeConfig",
]
