"""Captions through a text encoder, as a sequence and as a vector."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from trainer.condition_values import Tokens, Value
from trainer.config import Config
from trainer.images import ImageSpec
from trainer.networks.conditioning.transformer import TransformerConfig
from trainer.networks.embedded import Text
from trainer.noise import Noise

EncoderConfig = Annotated[TransformerConfig, Field(discriminator="kind")]


class TextConfig(Config):
    """A caption of the data set's `conditions` of the same name."""

    kind: Literal["text"]
    encoder: EncoderConfig = TransformerConfig(kind="transformer")
    """The text encoder, chosen by `kind`."""

    def build(self, name: str, width: int, spec: ImageSpec) -> CaptionEmbedding:
        """Raises ValueError if the data set has no captions of that name."""
        text = spec.text(name)
        return CaptionEmbedding(self.encoder.build(f"text/{name}", text.vocabulary, text.max_tokens), width)


class CaptionEmbedding(nn.Module):
    """Tokens [B, T] to vectors [B, width] and sequences of 1 + T vectors, of which the first is a summary.

    An unknown caption has no tokens; its sequence is the summary alone.
    """

    def __init__(self, encoder: nn.Module, width: int):
        super().__init__()
        self.encoder = encoder
        self.text_width: int = encoder.width  # type: ignore[assignment]
        self.outward = nn.Linear(self.text_width, width)

    def forward(self, caption: Value | None, noise: Noise) -> tuple[Tensor, Text]:
        if caption is None:
            images, device = len(noise.positions), self.outward.weight.device
            ids = torch.zeros(images, 0, dtype=torch.int32, device=device)
            caption = Tokens(ids, torch.zeros(images, dtype=torch.int32, device=device))
        assert isinstance(caption, Tokens)
        first = torch.ones(len(caption.ids), 1, dtype=torch.bool, device=caption.ids.device)
        present = torch.cat([first, caption.present], 1)
        tokens = self.encoder(caption.ids, present, noise)
        return self.outward(tokens[:, 0]), Text(tokens, present)
