"""The configuration of a ladder's stage."""

from __future__ import annotations

from pydantic import NonNegativeInt, PositiveInt

from trainer.config import Config


class StageConfig(Config):
    """Groups of latents at one resolution, which share the features of one place in the pass up."""

    shrink: PositiveInt = 1
    """Reduction factor of height and width relative to the stage before (to the image, for the first), rounding up."""
    width: PositiveInt
    """Channels of the features in both passes."""
    cells_up: NonNegativeInt = 1
    """Residual cells in the pass up from the image."""
    groups: NonNegativeInt = 1
    """Groups of latents, one after another in the pass down; 0 for a stage without latents."""
    latent: PositiveInt = 16
    """Channels (or dimensions) of each group of latents."""
    cells_down: NonNegativeInt = 1
    """Residual cells in the pass down after each group; in a stage without groups, in all."""
    repeat: PositiveInt = 1
    """Repeat this stage N times; only the first downsamples."""
