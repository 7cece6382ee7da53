"""Convolutional encoder and decoder with halving resolutions."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Len
from pydantic import PositiveInt
from torch import nn

from trainer.config import Config
from trainer.images import ImageSpec
from trainer.networks.unit import UnitSequential


class ConvConfig(Config):
    """Strided convolutions down, nearest-neighbour upsampling and convolutions up; no normalisation over the batch."""

    kind: Literal["conv"] = "conv"
    channels: Annotated[tuple[PositiveInt, ...], Len(1)] = (32, 64)
    """Channels at each resolution; each entry halves height and width (rounding up)."""
    hidden: PositiveInt = 256
    """Width of the dense layer between the smallest feature map and the latent."""

    def encoder(self, spec: ImageSpec, outputs: int) -> nn.Module:
        """[B, C, H, W] to [B, outputs]."""
        layers: list[nn.Module] = []
        inputs = spec.channels
        for width in self.channels:
            layers += [nn.Conv2d(inputs, width, 3, stride=2, padding=1), nn.SiLU()]
            layers += [nn.Conv2d(width, width, 3, padding=1), nn.SiLU()]
            inputs = width
        height, width = self._sides(spec)[-1]
        dense = [nn.Linear(inputs * height * width, self.hidden), nn.SiLU(), nn.Linear(self.hidden, outputs)]
        return UnitSequential(*layers, nn.Flatten(), *dense)

    def decoder(self, spec: ImageSpec, inputs: int, channels: int) -> nn.Module:
        """[B, inputs] to [B, channels, H, W]."""
        sides = self._sides(spec)
        height, width = sides[-1]
        deepest = self.channels[-1]
        layers: list[nn.Module] = [nn.Linear(inputs, self.hidden), nn.SiLU()]
        layers += [
            nn.Linear(self.hidden, deepest * height * width),
            nn.SiLU(),
            nn.Unflatten(1, (deepest, height, width)),
        ]
        before = deepest
        for side, after in zip(sides[-2::-1], [*self.channels[-2::-1], self.channels[0]], strict=True):
            layers += [nn.Upsample(size=side, mode="nearest"), nn.Conv2d(before, after, 3, padding=1), nn.SiLU()]
            before = after
        return UnitSequential(*layers, nn.Conv2d(before, channels, 3, padding=1))

    def _sides(self, spec: ImageSpec) -> list[tuple[int, int]]:
        """(height, width) at every resolution, the image's own first."""
        sides = [(spec.height, spec.width)]
        for _ in self.channels:
            sides.append(((sides[-1][0] + 1) // 2, (sides[-1][1] + 1) // 2))
        return sides
