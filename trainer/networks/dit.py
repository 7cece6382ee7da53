"""The diffusion transformer (Peebles and Xie 2023, DiT, arXiv 2212.09748), with adaLN-zero blocks."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from trainer.config import Config
from trainer.networks.attention import SelfAttention
from trainer.networks.float32 import in_float32, last_layer
from trainer.networks.residual import zeroed
from trainer.noise import Noise


class DitConfig(Config):
    """Patches as tokens. DiT-S: width 384, depth 12, heads 6; B: 768, 12, 12; L: 1024, 24, 16; XL: 1152, 28, 16."""

    kind: Literal["dit"]
    patch: PositiveInt = 2
    """Height and width of a patch in pixels; divides the image's height and width."""
    width: PositiveInt = 384
    """Width of the tokens."""
    depth: PositiveInt = 12
    """Number of transformer blocks."""
    heads: PositiveInt = 6
    """Attention heads; divides `width`."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout rate in the blocks."""

    def build(self, shape: tuple[int, int, int], inputs: int, outputs: int, embedding: int) -> nn.Module:
        """A network from [B, inputs, H, W] and [B, embedding] to [B, outputs, H, W], for shape (C, H, W).

        Raises ValueError if patches do not fit into the image.
        """
        if shape[1] % self.patch or shape[2] % self.patch:
            raise ValueError(f"denoiser.network.patch: {self.patch} does not divide {shape[1]} x {shape[2]} pixels")
        return Dit(self, shape, inputs, outputs, embedding)


class DitBlock(nn.Module):
    """Attention and an MLP, each scaled and shifted before and gated after by the embedding; gates start at zero."""

    def __init__(self, config: DitConfig, embedding: int, name: str):
        super().__init__()
        width = config.width
        self.dropout, self.name = config.dropout, name
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.attention = SelfAttention(width, config.heads)
        nn.init.xavier_uniform_(self.attention.outward.weight)  # the gate is zero already
        self.first, self.second = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.modulation = zeroed(nn.Linear(embedding, 6 * width))

    def forward(self, tokens: Tensor, embedding: Tensor, noise: Noise) -> Tensor:
        scale_1, shift_1, gate_1, scale_2, shift_2, gate_2 = self.modulation(embedding)[:, None].chunk(6, dim=-1)
        tokens = tokens + gate_1 * self.attention(self.norm(tokens) * (1 + scale_1) + shift_1)
        inner = F.gelu(self.first(self.norm(tokens) * (1 + scale_2) + shift_2), approximate="tanh")
        if noise.purpose == "train":
            inner = noise.dropout(self.name, inner, self.dropout)
        return tokens + gate_2 * self.second(inner)


class Dit(nn.Module):
    places: Tensor

    def __init__(self, config: DitConfig, shape: tuple[int, int, int], inputs: int, outputs: int, embedding: int):
        super().__init__()
        self.patch = config.patch
        self.exact = outputs == shape[0]  # one estimate for each value
        self.rows, self.columns = shape[1] // config.patch, shape[2] // config.patch
        self.inward = nn.Linear(inputs * config.patch**2, config.width)
        self.register_buffer("places", places(self.rows, self.columns, config.width), persistent=False)
        self.blocks = nn.ModuleList(DitBlock(config, embedding, f"dit{i}") for i in range(config.depth))
        self.norm = nn.LayerNorm(config.width, elementwise_affine=False)
        self.modulation = zeroed(nn.Linear(embedding, 2 * config.width))
        self.outward = zeroed(nn.Linear(config.width, outputs * config.patch**2))

    def forward(self, x: Tensor, embedding: Tensor, noise: Noise) -> Tensor:
        embedding = F.silu(embedding)
        patches = F.pixel_unshuffle(x, self.patch).flatten(2).transpose(1, 2)  # [B, n, inputs * patch^2]
        tokens = in_float32(self.inward, patches) + self.places
        for block in self.blocks:
            tokens = block(tokens, embedding, noise)
        scale, shift = self.modulation(embedding)[:, None].chunk(2, dim=-1)
        tokens = last_layer(self.outward, self.norm(tokens) * (1 + scale) + shift, self.exact)
        return F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (self.rows, self.columns)), self.patch)


def places(rows: int, columns: int, width: int) -> Tensor:
    """[rows * columns, width] sines and cosines of the row in one half, of the column in the other; width % 4 == 0."""
    if width % 4:
        raise ValueError(f"denoiser.network.width: {width} is not a multiple of 4")
    frequencies = 10_000 ** -(torch.arange(width // 4) / (width // 4))
    row, column = (torch.arange(n)[:, None] * frequencies for n in (rows, columns))
    rowwise, columnwise = (torch.cat([angle.sin(), angle.cos()], 1) for angle in (row, column))
    return torch.cat(
        [rowwise.repeat_interleave(columns, 0), columnwise.repeat(rows, 1)],
        dim=1,
    )
