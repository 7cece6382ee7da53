"""A small text encoder that is trained with the model."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from trainer.config import Config
from trainer.networks.attention import SelfAttention
from trainer.networks.normalisation import LayerNorm
from trainer.networks.unit import Unit
from trainer.noise import Noise


class TransformerConfig(Config):
    """A transformer over tokens, trained with the model (Vaswani et al. 2017, normalised before each part)."""

    kind: Literal["transformer"]
    width: PositiveInt = 256
    """Width of the tokens."""
    depth: PositiveInt = 2
    """Number of blocks."""
    heads: PositiveInt = 4
    """Attention heads; divides `width`."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout rate in the blocks."""

    def build(self, name: str, vocabulary: int, max_tokens: int) -> TextTransformer:
        """From ids below `vocabulary`, at most `max_tokens` of them. `name` names its dropout noise."""
        return TextTransformer(self, name, vocabulary, max_tokens)


class TextTransformer(nn.Module):
    """Ids int32 [B, T] to [B, 1 + T, width]: a summary, and the tokens in their context.

    The summary enters the blocks as the mean of the tokens' embeddings: a bag of words, from which it learns. The
    embeddings are large at first, since Adam moves those of rare words by many times the learning rate each time they
    occur.
    """

    def __init__(self, config: TransformerConfig, name: str, vocabulary: int, max_tokens: int):
        super().__init__()
        self.width = config.width
        self.words = nn.Embedding(vocabulary, config.width)
        self.places = nn.Embedding(1 + max_tokens, config.width)
        self.summary = nn.Parameter(torch.zeros(config.width))
        nn.init.normal_(self.words.weight, std=0.2)
        nn.init.normal_(self.places.weight, std=0.02)
        self.blocks = nn.ModuleList(TextBlock(config, f"{name}{i}") for i in range(config.depth))
        self.norm = nn.LayerNorm(config.width)

    def forward(self, ids: Tensor, present: Tensor, noise: Noise) -> Tensor:
        """`present`, bool [B, 1 + T]: false for padding."""
        words = self.words(ids)
        there = present[:, 1:, None].to(words.dtype)
        mean = (words * there).sum(1, keepdim=True) / there.sum(1, keepdim=True).clamp(min=1)
        tokens = torch.cat([self.summary + mean, words], 1) + self.places.weight[: present.shape[1]]
        for block in self.blocks:
            tokens = block(tokens, present, noise)
        return self.norm(tokens)


class TextBlock(Unit):
    """Attention and an MLP, both residual."""

    def __init__(self, config: TransformerConfig, name: str):
        super().__init__()
        width = config.width
        self.dropout, self.name = config.dropout, name
        self.first_norm, self.second_norm = LayerNorm(width), LayerNorm(width)
        self.attention = SelfAttention(width, config.heads)
        self.first, self.second = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        nn.init.normal_(self.attention.outward.weight, std=0.02)
        nn.init.normal_(self.second.weight, std=0.02)

    def forward(self, tokens: Tensor, present: Tensor, noise: Noise) -> Tensor:
        tokens = tokens + self.attention(self.first_norm(tokens), present)
        inner = F.gelu(self.first(self.second_norm(tokens)), approximate="tanh")
        if noise.purpose == "train":
            inner = noise.dropout(self.name, inner, self.dropout)
        return tokens + self.second(inner)
