"""Attention among tokens, over feature maps, and to captions."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from trainer.networks.embedded import Text
from trainer.networks.normalisation import most_groups
from trainer.networks.residual import zeroed
from trainer.networks.unit import Unit


class SelfAttention(nn.Module):
    """Multi-head attention among n tokens, [B, n, width] to the same; the output projection starts at zero."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        check_heads(width, heads)
        self.heads = heads
        self.inward, self.outward = nn.Linear(width, 3 * width), zeroed(nn.Linear(width, width))

    def forward(self, tokens: Tensor, present: Tensor | None = None) -> Tensor:
        """`present`, bool [B, n]: the tokens that are attended to; None: all."""
        query, key, value = self.project(tokens)
        mask = None if present is None else present[:, None, None, :]
        return self.outward(merged(F.scaled_dot_product_attention(query, key, value, attn_mask=mask)))

    def project(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, [B, heads, n, width / heads] each."""
        query, key, value = self.inward(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return query, key, value


class MapAttention(Unit):
    """Residual self-attention over the H x W positions of a map [B, C, H, W]; then attention to captions, if any."""

    def __init__(self, channels: int, heads: int, text: int = 0):
        """`text`: width of the captions' tokens; 0: there are none."""
        super().__init__()
        self.norm = most_groups(channels)
        self.attention = SelfAttention(channels, heads)
        self.captions = CrossAttention(channels, heads, text) if text else None

    def forward(self, h: Tensor, text: Text | None = None) -> Tensor:
        tokens = self.attention(self.norm(h).flatten(2).transpose(1, 2))
        h = h + tokens.transpose(1, 2).unflatten(2, h.shape[2:])
        if self.captions is None:
            return h
        assert text is not None
        return self.captions(h, text)


class CrossAttention(nn.Module):
    """Residual attention of the H x W positions of a map [B, C, H, W] to the tokens of captions."""

    def __init__(self, channels: int, heads: int, text: int):
        super().__init__()
        check_heads(channels, heads)
        self.heads = heads
        self.norm = most_groups(channels)
        self.query, self.outward = nn.Linear(channels, channels), zeroed(nn.Linear(channels, channels))
        self.key_value = nn.Linear(text, 2 * channels)

    def forward(self, h: Tensor, text: Text) -> Tensor:
        query = self.query(self.norm(h).flatten(2).transpose(1, 2)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key, value = self.key_value(text.tokens).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=text.present[:, None, None, :])
        return h + self.outward(merged(mixed)).transpose(1, 2).unflatten(2, h.shape[2:])


def merged(heads: Tensor) -> Tensor:
    """[B, heads, n, width / heads] to [B, n, width]."""
    return heads.transpose(1, 2).flatten(2)


def check_heads(width: int, heads: int) -> None:
    """Raises ValueError if attention heads do not divide the width."""
    if width % heads:
        raise ValueError(f"denoiser.network.heads: {heads} do not divide the width of {width}")
