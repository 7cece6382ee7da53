"""The bottleneck cell of VDVAE (Child 2021, arXiv 2011.10650, figure 3)."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import PositiveFloat
from torch import Tensor, nn

from trainer.networks.cells.base import Cells
from trainer.networks.residual import scale_down, zeroed
from trainer.networks.unit import Unit


class VdvaeCells(Cells):
    """Bottlenecks without any normalisation; prior and posterior are read off by bottlenecks too."""

    prior_adds: ClassVar[bool] = True
    kind: Literal["vdvae"] = "vdvae"
    bottleneck: PositiveFloat = 0.25
    """Width inside a cell, as a multiple of the features' width."""

    def bottom_up(self, width: int, side: int, depth: int) -> nn.Module:
        last = nn.Conv2d(self._inner(width), width, 1)
        scale_down(last, depth)
        return VdvaeCell(bottleneck(width, last, side))

    def top_down(self, width: int, side: int, depth: int) -> nn.Module:
        return self.bottom_up(width, side, depth)

    def head(self, inputs: int, width: int, outputs: int, side: int) -> nn.Module:
        return bottleneck(inputs, zeroed(nn.Conv2d(self._inner(width), outputs, 1)), side)

    def _inner(self, width: int) -> int:
        return max(1, round(self.bottleneck * width))


def bottleneck(inputs: int, last: nn.Conv2d, side: int) -> nn.Sequential:
    """1x1, 3x3, 3x3 and the `last`, 1x1 convolution, each behind a GELU; on maps of one or two pixels all are 1x1."""
    inner, size = last.in_channels, 3 if side > 2 else 1
    layers = [nn.GELU(), nn.Conv2d(inputs, inner, 1)]
    for _ in range(2):
        layers += [nn.GELU(), nn.Conv2d(inner, inner, size, padding=size // 2)]
    return nn.Sequential(*layers, nn.GELU(), last)


class VdvaeCell(Unit):
    """x + bottleneck(x), [B, width, H, W]."""

    def __init__(self, branch: nn.Sequential):
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)
