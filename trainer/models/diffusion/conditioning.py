"""The inputs of a denoiser besides z: the noise level and the conditions."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from trainer.config import Config
from trainer.models.base import Condition
from trainer.networks.float32 import in_float32

FREQUENCIES = 32  # of gamma, from one radian in 30 units to four radians a unit


class ClassConfig(Config):
    """An integer in 0..classes-1; negative: not known."""

    kind: Literal["class"]
    classes: PositiveInt | None = None
    """Number of classes. null: those of the data set."""

    def build(self, width: int, classes: int) -> nn.Module:
        """Raises ValueError if there are no classes."""
        if not (self.classes or classes):
            raise ValueError("denoiser.conditions: the images have no classes; say how many with `classes`")
        return ClassEmbedding(self.classes or classes, width)


class VectorConfig(Config):
    """A vector that somebody else's encoder made, of a caption, say; all zeros: not known."""

    kind: Literal["vector"]
    size: PositiveInt
    """Length of the vector."""

    def build(self, width: int, classes: int) -> nn.Module:
        return nn.Linear(self.size, width, bias=False)


ConditionConfig = Annotated[ClassConfig | VectorConfig, Field(discriminator="kind")]


class ClassEmbedding(nn.Module):
    """[B] int64 to [B, width]; the row after the last class is for unknown classes."""

    def __init__(self, classes: int, width: int):
        super().__init__()
        self.classes = classes
        self.rows = nn.Embedding(classes + 1, width)

    def forward(self, label: Tensor) -> Tensor:
        return self.rows(torch.where(label < 0, self.classes, label))


class Conditioning(nn.Module):
    """The noise level and every condition, as one vector an image."""

    frequencies: Tensor

    def __init__(self, width: int, conditions: dict[str, ClassConfig | VectorConfig], classes: int):
        super().__init__()
        self.register_buffer(
            "frequencies", torch.exp(torch.linspace(math.log(1 / 30), math.log(4), FREQUENCIES)), persistent=False
        )
        self.level = nn.Sequential(nn.Linear(2 * FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.conditions = nn.ModuleDict({name: config.build(width, classes) for name, config in conditions.items()})

    def forward(self, gamma: Tensor, condition: Condition) -> Tensor:
        """[B, width] from gamma [B] and `condition`; missing entries count as unknown."""
        angles = gamma[:, None] * self.frequencies.to(gamma.dtype)
        embedding = in_float32(self.level, torch.cat([angles.sin(), angles.cos()], 1))
        for name, module in self.conditions.items():
            known = (condition or {}).get(name)
            if known is not None:
                embedding = embedding + module(known)
            elif isinstance(module, ClassEmbedding):
                embedding = embedding + module.rows.weight[-1]
        return embedding


def dropped(condition: Condition, drop: Tensor) -> Condition:
    """`condition` replaced by unknown where drop [B] is true (Ho and Salimans 2022, arXiv 2207.12598)."""
    if condition is None:
        return None
    unknown = {name: -1 if not value.is_floating_point() else 0 for name, value in condition.items()}
    return {
        name: torch.where(drop.reshape(-1, *[1] * (value.dim() - 1)), unknown[name], value)
        for name, value in condition.items()
    }
