"""Self-attention over tokens and over feature maps."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from trainer.networks.normalisation import most_groups
from trainer.networks.residual import zeroed


class SelfAttention(nn.Module):
    """Multi-head attention among n tokens, [B, n, width] to the same; the output projection starts at zero."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        if width % heads:
            raise ValueError(f"denoiser.network.heads: {heads} do not divide the width of {width}")
        self.heads = heads
        self.inward, self.outward = nn.Linear(width, 3 * width), zeroed(nn.Linear(width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = self.inward(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)  # [B, heads, n, width / heads]
        return self.outward(mixed.transpose(1, 2).flatten(2))


class MapAttention(nn.Module):
    """Residual self-attention over the H x W positions of a map [B, C, H, W]."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.norm = most_groups(channels)
        self.attention = SelfAttention(channels, heads)

    def forward(self, h: Tensor) -> Tensor:
        tokens = self.attention(self.norm(h).flatten(2).transpose(1, 2))
        return h + tokens.transpose(1, 2).unflatten(2, h.shape[2:])
