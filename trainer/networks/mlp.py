"""Multi-layer perceptrons: the networks for CPU."""

from __future__ import annotations

import itertools
from typing import Literal

from pydantic import PositiveInt
from torch import nn

from trainer.config import Config
from trainer.images import ImageSpec
from trainer.networks.unit import UnitSequential, as_unit

Activation = Literal["silu", "tanh", "relu", "gelu"]
ACTIVATIONS: dict[str, type[nn.Module]] = {"silu": nn.SiLU, "tanh": nn.Tanh, "relu": nn.ReLU, "gelu": nn.GELU}


def mlp(widths: list[int], activation: Activation) -> nn.Sequential:
    """Linear layers from widths[0] to widths[-1] with activations between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1])


class MlpConfig(Config):
    """An MLP from an image to a vector (encoder) or from a vector to an image (decoder)."""

    kind: Literal["mlp"] = "mlp"
    hidden: tuple[PositiveInt, ...] = (512, 512)
    """Widths of the hidden layers, from input to output; [] for a linear map."""
    activation: Activation = "silu"
    """Activation of the hidden layers."""

    def encoder(self, spec: ImageSpec, outputs: int) -> nn.Module:
        """[B, C, H, W] to [B, outputs]."""
        return UnitSequential(nn.Flatten(), mlp([spec.dimensions, *self.hidden, outputs], self.activation))

    def decoder(self, spec: ImageSpec, inputs: int, channels: int) -> nn.Module:
        """[B, inputs] to [B, channels, H, W]."""
        outputs = channels * spec.height * spec.width
        shape = (channels, spec.height, spec.width)
        layers = as_unit(mlp([inputs, *self.hidden, outputs], self.activation))
        return nn.Sequential(layers, nn.Unflatten(1, shape))
