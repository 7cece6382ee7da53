"""Diffusion over the latents of a frozen first stage."""

from trainer.models.latent.model import Latent, LatentConfig

__all__ = ["Latent", "LatentConfig"]
