"""The residual block of the denoising U-Nets."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from trainer.networks.normalisation import most_groups
from trainer.networks.residual import zeroed
from trainer.networks.unit import Unit
from trainer.noise import Noise


class ConditionedBlock(Unit):
    """Two normalised convolutions (Ho et al. 2020), scaled and shifted between them by the embedding.

    [B, inputs, H, W] and [B, embedding] to [B, outputs, H, W]; the second convolution starts at zero. `name` names
    its dropout noise.
    """

    def __init__(self, inputs: int, outputs: int, embedding: int, dropout: float, name: str):
        super().__init__()
        self.dropout, self.name = dropout, name
        self.first_norm, self.second_norm = most_groups(inputs), most_groups(outputs)
        self.first = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.second = zeroed(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.modulation = zeroed(nn.Linear(embedding, 2 * outputs))
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, h: Tensor, embedding: Tensor, noise: Noise) -> Tensor:
        inner = self.first(F.silu(self.first_norm(h)))
        scale, shift = self.modulation(F.silu(embedding))[:, :, None, None].chunk(2, dim=1)
        inner = F.silu(self.second_norm(inner) * (1 + scale) + shift)
        if noise.purpose == "train":
            inner = noise.dropout(self.name, inner, self.dropout)
        return self.skip(h) + self.second(inner)
