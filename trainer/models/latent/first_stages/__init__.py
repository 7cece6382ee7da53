"""First stages, one file each; the configuration chooses by `kind`."""

from typing import Annotated

from pydantic import Field

from trainer.models.latent.first_stages.autoencoder_kl import DiffusersStageConfig
from trainer.models.latent.first_stages.base import FirstStage
from trainer.models.latent.first_stages.run import RunStageConfig

FirstStageConfig = Annotated[RunStageConfig | DiffusersStageConfig, Field(discriminator="kind")]

__all__ = ["FirstStage", "FirstStageConfig"]
