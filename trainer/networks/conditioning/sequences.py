"""A sequence of vectors that another encoder made of a caption, projected."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveInt

from trainer.config import Config
from trainer.images import ImageSpec
from trainer.networks.conditioning.captions import CaptionEmbedding
from trainer.networks.conditioning.sequence_encoder import SequenceEncoder


class SequenceConfig(Config):
    """The tokens of a caption through an encoder that was run before (`jobs.encode --with text:FOLDER`)."""

    kind: Literal["sequence"]
    size: PositiveInt
    """Length of each vector."""
    width: PositiveInt = 256
    """Width that the vectors are projected to; the projection is trained."""

    def build(self, name: str, width: int, spec: ImageSpec) -> CaptionEmbedding:
        return CaptionEmbedding(SequenceEncoder(self.size, self.width), width)
