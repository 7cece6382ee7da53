"""Rotary positions in two dimensions (Su et al. 2021, RoFormer, arXiv 2104.09864; for images Heo et al. 2024)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

BASE = 100.0  # of the wavelengths, from 2 pi patches on; images have tens of patches a side, not thousands


class Rotary(nn.Module):
    """Rotations for heads of `width`: one half of a head turns with the row, the other with the column."""

    frequencies: Tensor

    def __init__(self, width: int):
        """Raises ValueError if the width of a head is not a multiple of 4."""
        super().__init__()
        if width % 4:
            raise ValueError(f"denoiser.network.heads: rotary positions need heads of a multiple of 4, not {width}")
        frequencies = BASE ** -(torch.arange(width // 4) / (width // 4))
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Angles [..., n, width / 2] of patches at float32 rows and columns [..., n]."""
        return torch.cat([rows[..., None] * self.frequencies, columns[..., None] * self.frequencies], -1)


def rotate(heads: Tensor, angles: Tensor) -> Tensor:
    """[B, heads, n, width] with its pairs turned by angles [n, width / 2] or [B, 1, n, width / 2]."""
    first, second = heads.float().chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, first * sin + second * cos], -1).to(heads.dtype)
