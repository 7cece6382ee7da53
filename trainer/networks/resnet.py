"""Residual convolutional encoder and decoder, normalised within each image."""

from __future__ import annotations

import itertools
from typing import Annotated, Literal

import torch.nn.functional as F
from annotated_types import Len
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn

from trainer.config import Config
from trainer.images import ImageSpec
from trainer.networks.attention import MapAttention
from trainer.networks.normalisation import wide_groups
from trainer.networks.residual import scale_down
from trainer.networks.unit import Unit


class ResnetConfig(Config):
    """Residual blocks of two 3x3 convolutions (He et al. 2016, pre-activation) at halving resolutions."""

    kind: Literal["resnet"] = "resnet"
    channels: Annotated[tuple[PositiveInt, ...], Len(1)] = (64, 128, 256)
    """Channels at each resolution, starting with the image's own; height and width halve between entries (rounding
    up)."""
    blocks: PositiveInt = 2
    """Residual blocks per resolution."""
    hidden: PositiveInt = 512
    """Width of the dense layer between the smallest feature map and a latent vector; latents in maps have none."""
    attention: NonNegativeInt = 0
    """Heads of self-attention among the positions of the smallest feature map; 0: none."""

    def encoder(self, spec: ImageSpec, outputs: int) -> nn.Module:
        """[B, C, H, W] to [B, outputs]."""
        height, width = self._sides(spec)[-1]
        layers = [*self._down(spec), nn.Flatten()]
        layers += [nn.Linear(self.channels[-1] * height * width, self.hidden), nn.SiLU()]
        return nn.Sequential(*layers, nn.Linear(self.hidden, outputs))

    def decoder(self, spec: ImageSpec, inputs: int, channels: int) -> nn.Module:
        """[B, inputs] to [B, channels, H, W]."""
        height, width = self._sides(spec)[-1]
        deepest = self.channels[-1]
        layers: list[nn.Module] = [nn.Linear(inputs, self.hidden), nn.SiLU()]
        layers += [nn.Linear(self.hidden, deepest * height * width), nn.Unflatten(1, (deepest, height, width))]
        return nn.Sequential(*layers, *self._up(spec, channels))

    def map_encoder(self, spec: ImageSpec, outputs: int) -> nn.Module:
        """[B, C, H, W] to [B, outputs, h, w], of shape `map_sides`."""
        return nn.Sequential(*self._down(spec), nn.Conv2d(self.channels[-1], outputs, 3, padding=1))

    def map_decoder(self, spec: ImageSpec, inputs: int, channels: int) -> nn.Module:
        """[B, inputs, h, w] to [B, channels, H, W]."""
        return nn.Sequential(nn.Conv2d(inputs, self.channels[-1], 3, padding=1), *self._up(spec, channels))

    @property
    def downsample(self) -> int:
        """Height and width of the image over those of the smallest feature map."""
        return 1 << (len(self.channels) - 1)

    def map_sides(self, spec: ImageSpec) -> tuple[int, int]:
        """(h, w) of the smallest feature map."""
        return self._sides(spec)[-1]

    def _down(self, spec: ImageSpec) -> list[nn.Module]:
        layers: list[nn.Module] = [nn.Conv2d(spec.channels, self.channels[0], 3, padding=1)]
        layers += self._blocks(self.channels[0])
        for before, after in itertools.pairwise(self.channels):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), *self._blocks(after)]
        return [*layers, *self._attention(), wide_groups(self.channels[-1]), nn.SiLU()]

    def _up(self, spec: ImageSpec, channels: int) -> list[nn.Module]:
        layers = [*self._attention(), *self._blocks(self.channels[-1])]
        sides = self._sides(spec)[-2::-1]
        for side, (before, after) in zip(sides, itertools.pairwise(self.channels[::-1]), strict=True):
            layers += [Doubled(side), nn.Conv2d(before, after, 3, padding=1)]
            layers += self._blocks(after)
        last = nn.Conv2d(self.channels[0], channels, 3, padding=1)
        return [*layers, wide_groups(self.channels[0]), nn.SiLU(), last]

    def _attention(self) -> list[nn.Module]:
        """Raises ValueError if the heads do not divide the channels."""
        if not self.attention:
            return []
        if self.channels[-1] % self.attention:
            raise ValueError(f"attention: {self.attention} heads do not divide {self.channels[-1]} channels")
        return [MapAttention(self.channels[-1], self.attention)]

    def _blocks(self, channels: int) -> list[nn.Module]:
        depth = 2 * self.blocks * len(self.channels)  # of encoder and decoder together
        return [ResidualBlock(channels, depth) for _ in range(self.blocks)]

    def _sides(self, spec: ImageSpec) -> list[tuple[int, int]]:
        """(height, width) at every resolution, the image's own first."""
        sides = [(spec.height, spec.width)]
        for _ in self.channels[1:]:
            sides.append(((sides[-1][0] + 1) // 2, (sides[-1][1] + 1) // 2))
        return sides


class Doubled(nn.Module):
    """Twice the height and width by repeating values, of a whole map cut to `side`; of a part of one nothing is cut."""

    def __init__(self, side: tuple[int, int]):
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2, mode="nearest")[:, :, : self.side[0], : self.side[1]]


class ResidualBlock(Unit):
    """x + f(x), [B, channels, H, W]; the last convolution starts smaller by sqrt(1 / depth)."""

    def __init__(self, channels: int, depth: int):
        super().__init__()
        self.first_norm, self.second_norm = wide_groups(channels), wide_groups(channels)
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        scale_down(self.second, depth)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(F.silu(self.first_norm(x)))
        return x + self.second(F.silu(self.second_norm(h)))
