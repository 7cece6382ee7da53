"""Original size and crop of an image (Podell et al. 2023, SDXL, arXiv 2307.01952, section 2.2)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from trainer.condition_values import Value
from trainer.config import Config
from trainer.images import ImageSpec
from trainer.networks.float32 import in_float32
from trainer.networks.residual import zeroed
from trainer.noise import Noise

FREQUENCIES = 16  # of each number, from one radian in 10,000 pixels to one a pixel


class GeometryConfig(Config):
    """Height and width of the original image and the top left corner of the crop in it; all zeros: not known."""

    kind: Literal["geometry"]

    def build(self, name: str, width: int, spec: ImageSpec) -> GeometryEmbedding:
        return GeometryEmbedding(width)


class GeometryEmbedding(nn.Module):
    """[B, 4] pixels to [B, width]; zero at the start, and where it is not known."""

    frequencies: Tensor
    text_width = 0

    def __init__(self, width: int):
        super().__init__()
        frequencies = torch.exp(torch.linspace(-math.log(10_000), 0, FREQUENCIES))
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.outward = nn.Sequential(nn.Linear(8 * FREQUENCIES, width), nn.SiLU(), zeroed(nn.Linear(width, width)))

    def forward(self, geometry: Value | None, noise: Noise) -> tuple[Tensor, None]:
        if geometry is None:
            geometry = self.frequencies.new_zeros(len(noise.positions), 4)
        assert isinstance(geometry, Tensor)
        angles = (geometry[:, :, None] * self.frequencies).flatten(1)
        vector = in_float32(self.outward, torch.cat([angles.sin(), angles.cos()], 1))
        return torch.where(geometry.any(1, keepdim=True), vector, 0.0), None
