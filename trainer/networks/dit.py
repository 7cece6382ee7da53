"""The diffusion transformer (Peebles and Xie 2023, DiT, arXiv 2212.09748), with adaLN-zero blocks.

With captions as tokens, text and image tokens attend to each other, each with weights of their own (Esser et al. 2024,
MM-DiT, arXiv 2403.03206).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from trainer.config import Config
from trainer.networks.dit_block import BlockConfig, DitBlock, JointBlock
from trainer.networks.embedded import Text
from trainer.networks.float32 import in_float32, last_layer
from trainer.networks.residual import zeroed
from trainer.networks.rotary import Rotary
from trainer.noise import Noise
from trainer.patches import Patches


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
    bottleneck: PositiveInt | None = None
    """Width of a linear layer between a patch and its token, for large patches (Li and He 2025, JiT, arXiv
    2511.13720). null: none."""
    positions: Literal["sincos", "rotary"] = "sincos"
    """Positions of the patches: added to the tokens, or as rotations of queries and keys by row and column."""
    scale_positions: bool = False
    """For images of any shape: scale the positions of a grid of n patches by sqrt(N / n), so that a small grid spans as
    much as the largest, N, for multi-resolution training. false: positions count patches."""
    qk_norm: bool = False
    """Normalise queries and keys in each head (root mean square), which keeps long training in bf16 stable."""
    feedforward: Literal["gelu", "swiglu"] = "gelu"
    """The blocks' MLP: GELU of 4 times the width, or SwiGLU of 8/3 times it (Shazeer 2020, arXiv 2002.05202)."""

    captions: Literal["tokens", "vector"] = "tokens"
    """How captions enter. tokens: text and image tokens attend to each other. vector: by the embedding alone, as a
    class does, which is cheaper."""

    layout: bool = False
    """Add to each patch a linear function of the embedding with weights of its own, so that a condition can say at once
    what is where. For images of few patches."""

    def build(self, shape: tuple[int, int, int], inputs: int, outputs: int, embedding: int, text: int = 0) -> nn.Module:
        """A network from [B, inputs, H, W] and [B, embedding] to [B, outputs, H, W], for shape (C, H, W).

        `text`: width of the captions' tokens; 0: there are none. Raises ValueError if patches do not fit into the
        image.
        """
        if shape[1] % self.patch or shape[2] % self.patch:
            raise ValueError(f"denoiser.network.patch: {self.patch} does not divide {shape[1]} x {shape[2]} pixels")
        return Dit(self, shape, inputs, outputs, embedding, text if self.captions == "tokens" else 0)

    def block(self) -> BlockConfig:
        """The part that the blocks need."""
        return BlockConfig(self.width, self.heads, self.dropout, self.qk_norm, self.feedforward)


class Dit(nn.Module):
    places: Tensor

    def __init__(
        self, config: DitConfig, shape: tuple[int, int, int], inputs: int, outputs: int, embedding: int, text: int
    ):
        super().__init__()
        self.patch = config.patch
        self.exact = outputs == shape[0]  # one estimate for each value
        self.rows, self.columns = shape[1] // config.patch, shape[2] // config.patch
        self.scale_positions = config.scale_positions
        self.inward = _inward(inputs * config.patch**2, config)
        self.rotary: Rotary | None = None
        if config.positions == "rotary":
            self.rotary = Rotary(config.width // config.heads)
        self.register_buffer("places", places(*grid(self.rows, self.columns), config.width), persistent=False)
        self.layout: nn.Linear | None = None
        if config.layout:
            self.layout = nn.Linear(embedding, self.rows * self.columns * config.width)
            nn.init.normal_(self.layout.weight, std=0.01)
            nn.init.zeros_(self.layout.bias)
        block, names = config.block(), [f"dit{i}" for i in range(config.depth)]
        self.joint = text > 0
        if self.joint:
            self.text_inward = nn.Linear(text, config.width)
            last = names[-1]
            self.blocks = nn.ModuleList(JointBlock(block, embedding, name, last=name == last) for name in names)
        else:
            self.blocks = nn.ModuleList(DitBlock(block, embedding, name) for name in names)
        self.norm = nn.LayerNorm(config.width, elementwise_affine=False)
        self.modulation = zeroed(nn.Linear(embedding, 2 * config.width))
        self.outward = zeroed(nn.Linear(config.width, outputs * config.patch**2))

    def forward(self, x: Tensor, embedding: Tensor, noise: Noise, text: Text | None = None) -> Tensor:
        embedding = F.silu(embedding)
        patches = F.pixel_unshuffle(x, self.patch).flatten(2).transpose(1, 2)  # [B, n, inputs * patch^2]
        tokens, rotation = self._with_positions(in_float32(self.inward, patches), noise.patches)
        attended = None if noise.patches is None else noise.patches.attended
        if self.layout is not None:
            tokens = tokens + self.layout(embedding).unflatten(1, tokens.shape[1:])
        if text is None or not self.joint:
            for block in self.blocks:
                tokens = block(tokens, embedding, noise, rotation, attended)
        else:
            words = self.text_inward(text.tokens)
            for block in self.blocks:
                tokens, words = block(tokens, words, text.present, embedding, noise, rotation, attended)
        scale, shift = self.modulation(embedding)[:, None].chunk(2, dim=-1)
        tokens = last_layer(self.outward, self.norm(tokens) * (1 + scale) + shift, self.exact)
        return F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (self.rows, self.columns)), self.patch)

    def _with_positions(self, tokens: Tensor, patches: Patches | None) -> tuple[Tensor, Tensor | None]:
        """The tokens [B, n, width] with their positions added, or the angles of these."""
        if patches is None:
            if self.rotary is None:
                return tokens + self.places, None
            return tokens, self.rotary(*grid(self.rows, self.columns, tokens.device))
        rows, columns = patches.rows.float(), patches.columns.float()
        if self.scale_positions:
            factor = (patches.rows.shape[1] / patches.counts.clamp(min=1)).sqrt()[:, None]
            rows, columns = rows * factor, columns * factor
        if self.rotary is None:
            return tokens + places(rows, columns, tokens.shape[2]).to(tokens.dtype), None
        return tokens, self.rotary(rows, columns)[:, None]


def grid(rows: int, columns: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Row and column of each patch, float32 [rows * columns], row by row."""
    row, column = torch.arange(rows, device=device), torch.arange(columns, device=device)
    return row.repeat_interleave(columns).float(), column.repeat(rows).float()


def places(rows: Tensor, columns: Tensor, width: int) -> Tensor:
    """[..., n, width] sines and cosines of the rows [..., n] in one half, of the columns in the other."""
    if width % 4:
        raise ValueError(f"denoiser.network.width: {width} is not a multiple of 4")
    frequencies = 10_000 ** -(torch.arange(width // 4, device=rows.device) / (width // 4))
    angles = [place[..., None] * frequencies for place in (rows, columns)]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], -1)


def _inward(inputs: int, config: DitConfig) -> nn.Module:
    if config.bottleneck is None:
        return nn.Linear(inputs, config.width)
    return nn.Sequential(nn.Linear(inputs, config.bottleneck, bias=False), nn.Linear(config.bottleneck, config.width))
