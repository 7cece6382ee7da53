"""What residual networks share."""

from __future__ import annotations

import math

import torch
from torch import nn

Layer = nn.Conv2d | nn.Linear


def group_norm(channels: int) -> nn.GroupNorm:
    """Normalisation over groups of channels within one image (Wu and He 2018), whatever else is in the batch."""
    # at most 32 groups, of four channels at least: a group of one channel would lose its mean
    return nn.GroupNorm(math.gcd(32, channels, max(channels // 4, 1)), channels)


@torch.no_grad()
def scale_down(layer: Layer, depth: int) -> None:
    """The last layer of one of `depth` residual branches: weights times sqrt(1 / depth), no bias.

    The sum of all branches then starts with a variance that does not grow with depth (Child 2021, VDVAE, section 3).
    """
    layer.weight.mul_(depth**-0.5)
    if layer.bias is not None:
        layer.bias.zero_()


@torch.no_grad()
def zero(layer: nn.Module) -> None:
    """Start a layer from the map to zero."""
    for parameter in layer.parameters():
        parameter.zero_()
