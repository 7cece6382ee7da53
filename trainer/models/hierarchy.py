"""What models with several levels of latents offer besides: a look at which level decides what."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from trainer.models.base import Condition, Model
from trainer.noise import Noise


class Hierarchy(Model):
    """A model of latents z_1 .. z_T with z_T the top."""

    levels: int  # T

    def sample(
        self, noise: Noise, condition: Condition = None, temperature: float = 1.0, shared_levels: int = 0
    ) -> Tensor:
        """New images; the upper `shared_levels` levels are the same for all, those of position 0."""
        raise NotImplementedError

    def reconstruct(self, images: Tensor, condition: Condition, noise: Noise, levels: int | None = None) -> Tensor:
        """What the decoder makes of the images' own latents; of the upper `levels` (1 .. T) alone if given.

        The levels below those are the means of p: what the upper ones have decided.
        """
        raise NotImplementedError


def held(noise: Noise, shared: bool) -> Noise:
    """The noise of a level that all samples share if `shared` (that of position 0, in whatever batch), else `noise`."""
    return replace(noise, positions=torch.zeros_like(noise.positions)) if shared else noise
