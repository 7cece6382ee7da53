"""Models, one file each; the configuration chooses by `kind`."""

from trainer.models.base import Condition, Model
from trainer.models.vae import VaeConfig

# With more than one model: Annotated[VaeConfig | ..., Field(discriminator="kind")]
ModelConfig = VaeConfig

__all__ = ["Condition", "Model", "ModelConfig", "VaeConfig"]
