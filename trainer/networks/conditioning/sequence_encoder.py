"""Vectors that another encoder made of the tokens of captions, projected, with a summary of each caption."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainer.noise import Noise


class SequenceEncoder(nn.Module):
    """Vectors [B, T, size] to [B, 1 + T, width]: a summary, which has their mean, and the vectors, both projected."""

    def __init__(self, size: int, width: int):
        super().__init__()
        self.width = width
        self.inward, self.mean = nn.Linear(size, width), nn.Linear(size, width)
        self.summary = nn.Parameter(torch.zeros(width))

    def forward(self, vectors: Tensor, present: Tensor, noise: Noise) -> Tensor:
        """`present`, bool [B, 1 + T]: false for padding."""
        if not vectors.shape[1]:  # nothing is known of any caption
            vectors = self.inward.weight.new_zeros(len(vectors), 0, self.inward.in_features)
        return self.project(vectors.to(self.inward.weight.dtype), present)

    def project(self, vectors: Tensor, present: Tensor) -> Tensor:
        """The same, of vectors in the type of the weights."""
        there = present[:, 1:, None]
        vectors = torch.where(there, vectors, 0.0)  # of a caption without tokens nothing else is certain
        mean = vectors.sum(1) / there.sum(1).clamp(min=1)
        first = self.summary + self.mean(mean)
        return torch.cat([first[:, None], self.inward(vectors)], 1)
