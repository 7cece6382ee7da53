"""The denoiser of Kingma et al. 2021 (VDM, arXiv 2107.00630, appendix B): a U-Net that never halves the resolution.

For likelihood every pixel counts, so its maps keep the image's size; skips join the way down to the way up, and there
is one attention, in the middle. Their CIFAR-10 model has depth 32 and 128 channels, ImageNet 64 depth 64 and 256.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from trainer.config import Config
from trainer.networks.attention import MapAttention
from trainer.networks.embedded import Text
from trainer.networks.float32 import first_layer, last_layer
from trainer.networks.normalisation import most_groups
from trainer.networks.residual import zeroed
from trainer.networks.residual_block import ConditionedBlock
from trainer.noise import Noise


class VdmUnetConfig(Config):
    """Blocks of constant resolution and width."""

    kind: Literal["vdm_unet"]
    channels: PositiveInt = 128
    """Channels of all blocks."""
    depth: PositiveInt = 32
    """Residual blocks on the way down; one more on the way up, and two in the middle."""
    heads: PositiveInt = 1
    """Attention heads of the middle block."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout rate in the residual blocks."""

    def build(self, shape: tuple[int, int, int], inputs: int, outputs: int, embedding: int, text: int = 0) -> nn.Module:
        """A network from [B, inputs, H, W] and [B, embedding] to [B, outputs, H, W], for shape (C, H, W).

        `text`: width of the captions' tokens, which the middle attends to; 0: there are none.
        """
        return VdmUnet(self, shape[0], inputs, outputs, embedding, text)


class VdmUnet(nn.Module):
    """With as many outputs as z has channels, z (the first inputs) is added to them, as VDM does for eps."""

    def __init__(self, config: VdmUnetConfig, channels: int, inputs: int, outputs: int, embedding: int, text: int):
        super().__init__()
        self.residual = channels if outputs == channels else 0
        width = config.channels

        def block(inputs: int, name: str) -> ConditionedBlock:
            return ConditionedBlock(inputs, width, embedding, config.dropout, f"vdm/{name}")

        self.inward = nn.Conv2d(inputs, width, 3, padding=1)
        self.down = nn.ModuleList(block(width, f"down{i}") for i in range(config.depth))
        self.before, self.after = block(width, "middle0"), block(width, "middle1")
        self.attention = MapAttention(width, config.heads, text)
        self.up = nn.ModuleList(block(2 * width, f"up{i}") for i in range(config.depth + 1))
        self.norm = most_groups(width)
        self.outward = zeroed(nn.Conv2d(width, outputs, 3, padding=1))

    def forward(self, x: Tensor, embedding: Tensor, noise: Noise, text: Text | None = None) -> Tensor:
        h = first_layer(self.inward, x)
        skips = [h]
        for block in self.down:
            h = block(h, embedding, noise)
            skips.append(h)
        h = self.after(self.attention(self.before(h, embedding, noise), text), embedding, noise)
        for block in self.up:
            h = block(torch.cat([h, skips.pop()], 1), embedding, noise)
        h = last_layer(self.outward, F.silu(self.norm(h)), self.residual > 0)
        return x[:, : self.residual] + h if self.residual else h
