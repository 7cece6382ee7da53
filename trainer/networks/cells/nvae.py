"""The residual cells of NVAE (Vahdat and Kautz 2020, arXiv 2007.03898, figure 3), without BatchNorm.

Where the paper normalises over the batch, groups of channels of one image are normalised, so that a gradient does not
depend on how the batch is split.
"""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveInt
from torch import Tensor, nn

from trainer.networks.cells.base import Cells
from trainer.networks.normalisation import wide_groups
from trainer.networks.residual import scale_down, zeroed
from trainer.networks.unit import Unit


class NvaeCells(Cells):
    """Two 3x3 convolutions on the way up, a wide depthwise 5x5 one on the way down, squeeze-and-excitation in both."""

    kind: Literal["nvae"] = "nvae"
    expansion: PositiveInt = 6
    """Channels of the depthwise convolution, as a multiple of the features' width."""
    squeeze: PositiveInt = 16
    """Reduction factor of squeeze-and-excitation (at least 4 channels remain)."""

    def bottom_up(self, width: int, side: int, depth: int) -> nn.Module:
        last = nn.Conv2d(width, width, 3, padding=1)
        layers = [wide_groups(width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1), wide_groups(width), nn.SiLU()]
        return self._cell(layers, last, width, depth)

    def top_down(self, width: int, side: int, depth: int) -> nn.Module:
        wide = self.expansion * width
        layers = [wide_groups(width), nn.Conv2d(width, wide, 1), wide_groups(wide), nn.SiLU()]
        layers += [nn.Conv2d(wide, wide, 5, padding=2, groups=wide), wide_groups(wide), nn.SiLU()]
        return self._cell(layers, nn.Conv2d(wide, width, 1), width, depth)

    def head(self, inputs: int, width: int, outputs: int, side: int) -> nn.Module:
        return nn.Sequential(nn.ELU(), zeroed(nn.Conv2d(inputs, outputs, 3, padding=1)))

    def _cell(self, layers: list[nn.Module], last: nn.Conv2d, width: int, depth: int) -> nn.Module:
        scale_down(last, depth)
        return NvaeCell(nn.Sequential(*layers, last), SqueezeExcitation(width, max(width // self.squeeze, 4)))


class NvaeCell(Unit):
    """x + SE(branch(x)), [B, width, H, W]."""

    def __init__(self, branch: nn.Sequential, excitation: SqueezeExcitation):
        super().__init__()
        self.branch, self.excitation = branch, excitation

    def forward(self, x: Tensor) -> Tensor:
        return x + self.excitation(self.branch(x))


class SqueezeExcitation(nn.Module):
    """Each channel times a gate computed from the means of all channels (Hu et al. 2018)."""

    def __init__(self, channels: int, squeezed: int):
        super().__init__()
        self.gate = nn.Sequential(nn.Linear(channels, squeezed), nn.ReLU(), nn.Linear(squeezed, channels), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x.mean(dim=(2, 3)))[:, :, None, None]
