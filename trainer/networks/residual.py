"""Initial values of residual networks."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

Layer = nn.Conv2d | nn.Linear
L = TypeVar("L", bound=nn.Module)


@torch.no_grad()
def scale_down(layer: Layer, depth: int) -> None:
    """The last layer of one of `depth` residual branches: weights times sqrt(1 / depth), no bias.

    The sum of all branches then starts with a variance that does not grow with depth (Child 2021, VDVAE, section 3).
    """
    layer.weight.mul_(depth**-0.5)
    if layer.bias is not None:
        layer.bias.zero_()


@torch.no_grad()
def zeroed(layer: L) -> L:
    """The layer with weights and bias of zero: it starts as the map to zero."""
    for parameter in layer.parameters():
        parameter.zero_()
    return layer
