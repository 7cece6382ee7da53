"""The denoising U-Net of several resolutions (Ho et al. 2020, arXiv 2006.11239, appendix B)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Len
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from trainer.config import Config
from trainer.networks.attention import MapAttention
from trainer.networks.embedded import Text
from trainer.networks.float32 import first_layer, last_layer
from trainer.networks.normalisation import most_groups
from trainer.networks.residual import zeroed
from trainer.networks.residual_block import ConditionedBlock
from trainer.networks.unit import Unit
from trainer.noise import Noise


class UnetConfig(Config):
    """Residual blocks at falling and rising resolutions, joined by skips; attention at the small ones."""

    kind: Literal["unet"]
    channels: PositiveInt = 128
    """Channels at the first resolution, before `multipliers`."""
    multipliers: Annotated[tuple[PositiveInt, ...], Len(1)] = (1, 2, 2, 2)
    """Factor of `channels` at each resolution; each resolution halves height and width (rounding up)."""
    blocks: PositiveInt = 2
    """Residual blocks per resolution on the way down; one more on the way up."""
    attention: tuple[int, ...] = (16,)
    """Heights of the feature maps with self-attention."""
    heads: PositiveInt = 4
    """Attention heads."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout rate in the residual blocks."""

    def build(self, shape: tuple[int, int, int], inputs: int, outputs: int, embedding: int, text: int = 0) -> nn.Module:
        """A network from [B, inputs, H, W] and [B, embedding] to [B, outputs, H, W], for shape (C, H, W).

        `text`: width of the captions' tokens, which the maps with attention attend to; 0: there are none.
        """
        return Unet(self, shape, inputs, outputs, embedding, text)


class UnetBlock(Unit):
    """A residual block, and attention where the map is of the right size."""

    def __init__(self, config: UnetConfig, inputs: int, outputs: int, height: int, widths: tuple[int, int], name: str):
        """`widths`: of the embedding and of the captions' tokens."""
        super().__init__()
        self.block = ConditionedBlock(inputs, outputs, widths[0], config.dropout, name)
        attends = height in config.attention
        self.attention = MapAttention(outputs, config.heads, widths[1]) if attends else None

    def forward(self, h: Tensor, embedding: Tensor, noise: Noise, text: Text | None) -> Tensor:
        h = self.block(h, embedding, noise)
        return h if self.attention is None else self.attention(h, text)


class Unet(nn.Module):
    def __init__(
        self, config: UnetConfig, shape: tuple[int, int, int], inputs: int, outputs: int, embedding: int, text: int
    ):
        super().__init__()
        of = embedding, text
        self.exact = outputs == shape[0]  # one estimate for each value
        widths = [config.channels * multiplier for multiplier in config.multipliers]
        heights = [shape[1]]
        for _ in widths[1:]:
            heights.append((heights[-1] + 1) // 2)
        self.inward = nn.Conv2d(inputs, config.channels, 3, padding=1)

        skips, width = [config.channels], config.channels
        self.down, self.shrink = nn.ModuleList(), nn.ModuleList()
        for level, (after, height) in enumerate(zip(widths, heights, strict=True)):
            if level:
                self.shrink.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
                skips.append(width)
            stages = nn.ModuleList()
            for i in range(config.blocks):
                stages.append(UnetBlock(config, width, after, height, of, f"unet/down{level}.{i}"))
                width = after
                skips.append(width)
            self.down.append(stages)

        self.middle = nn.ModuleList(
            (
                ConditionedBlock(width, width, embedding, config.dropout, "unet/middle0"),
                MapAttention(width, config.heads, text),
                ConditionedBlock(width, width, embedding, config.dropout, "unet/middle1"),
            )
        )
        self.up, self.grow = nn.ModuleList(), nn.ModuleList()
        for level, (after, height) in reversed(list(enumerate(zip(widths, heights, strict=True)))):
            stages = nn.ModuleList()
            for i in range(config.blocks + 1):
                name = f"unet/up{level}.{i}"
                stages.append(UnetBlock(config, width + skips.pop(), after, height, of, name))
                width = after
            self.up.append(stages)
            if level:
                self.grow.append(nn.Conv2d(width, width, 3, padding=1))
        self.norm = most_groups(width)
        self.outward = zeroed(nn.Conv2d(width, outputs, 3, padding=1))

    def forward(self, x: Tensor, embedding: Tensor, noise: Noise, text: Text | None = None) -> Tensor:
        h = first_layer(self.inward, x)
        skips = [h]
        for level, stages in enumerate(self.down):
            if level:
                h = self.shrink[level - 1](h)
                skips.append(h)
            for stage in modules(stages):
                h = stage(h, embedding, noise, text)
                skips.append(h)
        first, attention, second = self.middle
        h = second(attention(first(h, embedding, noise), text), embedding, noise)
        for level, stages in enumerate(self.up):
            for stage in modules(stages):
                h = stage(torch.cat([h, skips.pop()], 1), embedding, noise, text)
            if skips:
                h = self.grow[level](F.interpolate(h, size=skips[-1].shape[2:], mode="nearest"))
        return last_layer(self.outward, F.silu(self.norm(h)), self.exact)


def modules(stages: nn.Module) -> Iterable[nn.Module]:
    assert isinstance(stages, nn.ModuleList)
    return stages
