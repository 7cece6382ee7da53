"""What the hierarchies share."""

from __future__ import annotations

from dataclasses import replace

import torch

from trainer.noise import Noise


def held(noise: Noise, shared: bool) -> Noise:
    """The noise of a level that all samples share if `shared` (that of position 0, in whatever batch), else `noise`."""
    return replace(noise, positions=torch.zeros_like(noise.positions)) if shared else noise
