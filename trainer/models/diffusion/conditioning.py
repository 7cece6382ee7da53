"""The inputs of a denoiser besides z: the noise level and the conditions."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from trainer.condition_values import Condition
from trainer.images import ImageSpec
from trainer.networks.conditioning import ConditionConfig, ConditionEmbedding
from trainer.networks.embedded import Text
from trainer.networks.float32 import in_float32
from trainer.noise import Noise

FREQUENCIES = 32  # of gamma, from one radian in 30 units to four radians a unit


class Conditioning(nn.Module):
    """The noise level and every condition: as one vector an image, and captions as a sequence too."""

    frequencies: Tensor

    def __init__(self, width: int, conditions: Mapping[str, ConditionConfig], spec: ImageSpec):
        super().__init__()
        self.register_buffer(
            "frequencies", torch.exp(torch.linspace(math.log(1 / 30), math.log(4), FREQUENCIES)), persistent=False
        )
        self.level = nn.Sequential(nn.Linear(2 * FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.conditions = ConditionEmbedding(conditions, width, spec)

    def forward(self, gamma: Tensor, condition: Condition, noise: Noise) -> tuple[Tensor, Text | None]:
        """[B, width] from gamma [B] and `condition`; missing entries count as unknown."""
        angles = gamma[:, None] * self.frequencies.to(gamma.dtype)
        level = in_float32(self.level, torch.cat([angles.sin(), angles.cos()], 1))
        vector, text = self.conditions(condition, noise)
        return level if vector is None else level + vector, text
