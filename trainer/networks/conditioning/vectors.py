"""A vector from another encoder, projected."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveInt
from torch import Tensor, nn

from trainer.condition_values import Value
from trainer.config import Config
from trainer.images import ImageSpec
from trainer.noise import Noise


class VectorConfig(Config):
    """A vector that another encoder made, of a caption, say; all zeros: not known."""

    kind: Literal["vector"]
    size: PositiveInt
    """Length of the vector."""

    def build(self, name: str, width: int, spec: ImageSpec) -> VectorEmbedding:
        return VectorEmbedding(self.size, width, bias=False)


class VectorEmbedding(nn.Linear):
    """[B, size] float32 to [B, width], without a bias: zeros to zeros."""

    text_width = 0

    def forward(self, vector: Value | None, noise: Noise) -> tuple[Tensor, None]:  # type: ignore[override]
        if vector is None:
            return self.weight.new_zeros(len(noise.positions), self.out_features), None
        assert isinstance(vector, Tensor)
        return super().forward(vector), None
