"""The interface of the cells of a ladder."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from trainer.config import Config
from trainer.images import ImageSpec
from trainer.networks.residual import Layer


class Cells(Config):
    """Builds the parts of a ladder. Features are maps [B, width, height, width], or vectors [B, width].

    `side` is the shorter side of the maps that a part is for, `depth` the number of residual cells in the whole pass
    that a cell belongs to.
    """

    maps: ClassVar[bool] = True  # features are maps, else vectors
    prior_adds: ClassVar[bool] = False  # the head of the prior gives something to add to the features as well

    def stem(self, spec: ImageSpec, width: int) -> nn.Module:
        """Scaled images [B, C, H, W] to features."""
        return nn.Conv2d(spec.channels, width, 3, padding=1)

    def project(self, inputs: int, outputs: int) -> Layer:
        """A linear map of features at each place."""
        return nn.Conv2d(inputs, outputs, 1)

    def bottom_up(self, width: int, side: int, depth: int) -> nn.Module:
        """A residual cell of the pass from the image up."""
        raise NotImplementedError

    def top_down(self, width: int, side: int, depth: int) -> nn.Module:
        """A residual cell of the pass from the top down."""
        raise NotImplementedError

    def head(self, inputs: int, width: int, outputs: int, side: int) -> nn.Module:
        """From features [B, inputs, ...], of cells that are `width` wide, to parameters of a normal distribution.

        All zeros at the start.
        """
        raise NotImplementedError

    def output(self, spec: ImageSpec, width: int, channels: int) -> nn.Module:
        """Features of the image's own resolution to the parameters of the likelihood, [B, channels, H, W]."""
        return nn.Sequential(nn.SiLU(), nn.Conv2d(width, channels, 3, padding=1))
