"""A residual MLP from a noisy image to an image: the denoiser for CPU."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from trainer.config import Config
from trainer.networks.embedded import Text
from trainer.networks.float32 import first_layer, last_layer
from trainer.networks.residual import zeroed
from trainer.networks.unit import Unit
from trainer.noise import Noise


class DenoiserMlpConfig(Config):
    """Residual blocks of one hidden layer, scaled and shifted by the embedding of the noise level."""

    kind: Literal["mlp"] = "mlp"
    width: PositiveInt = 384
    """Width of the residual blocks."""
    depth: NonNegativeInt = 2
    """Number of residual blocks."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout rate in the residual blocks."""

    def build(self, shape: tuple[int, int, int], inputs: int, outputs: int, embedding: int, text: int = 0) -> nn.Module:
        """A network from [B, inputs, H, W] and [B, embedding] to [B, outputs, H, W], for shape (C, H, W).

        Of captions it takes only the part in the embedding.
        """
        return DenoiserMlp(self, shape, inputs, outputs, embedding)


class MlpBlock(Unit):
    def __init__(self, width: int, embedding: int, dropout: float, name: str):
        super().__init__()
        self.dropout, self.name = dropout, name
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(embedding, 2 * width)
        self.first, self.second = nn.Linear(width, width), zeroed(nn.Linear(width, width))

    def forward(self, h: Tensor, embedding: Tensor, noise: Noise) -> Tensor:
        scale, shift = self.modulation(embedding).chunk(2, dim=1)
        inner = nn.functional.silu(self.first(self.norm(h) * (1 + scale) + shift))
        return h + self.second(noise.dropout(self.name, inner, self.dropout if noise.purpose == "train" else 0))


class DenoiserMlp(nn.Module):
    def __init__(
        self, config: DenoiserMlpConfig, shape: tuple[int, int, int], inputs: int, outputs: int, embedding: int
    ):
        super().__init__()
        channels, height, width = shape
        self.shape = (outputs, height, width)
        self.exact = outputs == channels  # one estimate for each value
        self.inner = nn.Linear(inputs * height * width, config.width)
        self.blocks = nn.ModuleList(
            MlpBlock(config.width, embedding, config.dropout, f"mlp{i}") for i in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.width)
        self.outer = zeroed(nn.Linear(config.width, math.prod(self.shape)))

    def forward(self, x: Tensor, embedding: Tensor, noise: Noise, text: Text | None = None) -> Tensor:
        embedding = nn.functional.silu(embedding)
        h = first_layer(self.inner, x.flatten(1))
        for block in self.blocks:
            h = block(h, embedding, noise)
        return last_layer(self.outer, nn.functional.silu(self.norm(h)), self.exact).unflatten(1, self.shape)
