"""Diffusion models, one concept a file."""

from trainer.models.diffusion.base import DiffusionBase
from trainer.models.diffusion.model import Diffusion, DiffusionConfig

__all__ = ["Diffusion", "DiffusionBase", "DiffusionConfig"]
