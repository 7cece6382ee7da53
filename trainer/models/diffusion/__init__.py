"""Diffusion models, one concept a file."""

from trainer.models.diffusion.model import Diffusion, DiffusionConfig
from trainer.models.diffusion.sampled import DiffusionModel

__all__ = ["Diffusion", "DiffusionConfig", "DiffusionModel"]
