"""Cells on vectors: the ladder for CPU."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import PositiveFloat
from torch import Tensor, nn

from trainer.images import ImageSpec
from trainer.networks.cells.base import Cells
from trainer.networks.mlp import ACTIVATIONS, Activation
from trainer.networks.residual import Layer, scale_down, zeroed
from trainer.networks.unit import Unit


class MlpCells(Cells):
    """Residual layers on vectors; groups of latents are vectors too."""

    maps: ClassVar[bool] = False
    kind: Literal["mlp"] = "mlp"
    activation: Activation = "silu"
    """Activation of the hidden layers."""
    expansion: PositiveFloat = 1.0
    """Width of a cell's hidden layer, as a multiple of the features' width."""

    def stem(self, spec: ImageSpec, width: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(spec.dimensions, width))

    def project(self, inputs: int, outputs: int) -> Layer:
        return nn.Linear(inputs, outputs)

    def bottom_up(self, width: int, side: int, depth: int) -> nn.Module:
        return MlpCell(width, round(self.expansion * width), self.activation, depth)

    def top_down(self, width: int, side: int, depth: int) -> nn.Module:
        return self.bottom_up(width, side, depth)

    def head(self, inputs: int, width: int, outputs: int, side: int) -> nn.Module:
        return nn.Sequential(ACTIVATIONS[self.activation](), zeroed(nn.Linear(inputs, outputs)))

    def output(self, spec: ImageSpec, width: int, channels: int) -> nn.Module:
        shape = (channels, spec.height, spec.width)
        last = nn.Linear(width, channels * spec.height * spec.width)
        return nn.Sequential(ACTIVATIONS[self.activation](), last, nn.Unflatten(1, shape))


class MlpCell(Unit):
    """x + f(x), [B, width]: two linear layers, each behind an activation."""

    def __init__(self, width: int, hidden: int, activation: Activation, depth: int):
        super().__init__()
        first, last = nn.Linear(width, hidden), nn.Linear(hidden, width)
        scale_down(last, depth)
        self.branch = nn.Sequential(ACTIVATIONS[activation](), first, ACTIVATIONS[activation](), last)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)
