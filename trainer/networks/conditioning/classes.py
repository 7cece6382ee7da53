"""A class as a vector."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from trainer.condition_values import Value
from trainer.config import Config
from trainer.images import ImageSpec
from trainer.noise import Noise


class ClassConfig(Config):
    """An integer in 0..classes-1; negative: not known."""

    kind: Literal["class"]
    classes: PositiveInt | None = None
    """Number of classes. null: those of the data set."""

    def build(self, name: str, width: int, spec: ImageSpec) -> ClassEmbedding:
        """Raises ValueError if there are no classes."""
        if not (self.classes or spec.classes):
            raise ValueError(f"conditions.{name}: the images have no classes; give their number as `classes`")
        return ClassEmbedding(self.classes or spec.classes, width)


class ClassEmbedding(nn.Module):
    """[B] int64 to [B, width]; the row after the last class is for unknown classes."""

    text_width = 0

    def __init__(self, classes: int, width: int):
        super().__init__()
        self.classes = classes
        self.rows = nn.Embedding(classes + 1, width)

    def forward(self, label: Value | None, noise: Noise) -> tuple[Tensor, None]:
        if label is None:
            return self.rows.weight[-1].expand(len(noise.positions), -1), None
        assert isinstance(label, Tensor)
        return self.rows(torch.where(label < 0, self.classes, label)), None
