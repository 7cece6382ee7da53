"""Captions through a text encoder, as a sequence and as a vector."""

from __future__ import annotations

from typing import Annotated, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from trainer.condition_values import Tokens, Value
from trainer.config import Config
from trainer.images import ImageSpec
from trainer.networks.conditioning.pretrained import PretrainedConfig, PretrainedEncoder
from trainer.networks.conditioning.transformer import TransformerConfig
from trainer.networks.embedded import Text
from trainer.noise import Noise

EncoderConfig = Annotated[TransformerConfig | PretrainedConfig, Field(discriminator="kind")]


class TextConfig(Config):
    """A caption of the data set's `conditions` of the same name."""

    kind: Literal["text"]
    encoder: EncoderConfig = TransformerConfig(kind="transformer")
    """The text encoder, chosen by `kind`."""

    def build(self, name: str, width: int, spec: ImageSpec) -> CaptionEmbedding:
        """Raises ValueError if the data set has no captions of that name, or the encoder cannot be read."""
        text = spec.text(name)
        try:
            encoder = self.encoder.build(f"text/{name}", text.vocabulary, text.max_tokens)
        except ValueError as error:
            raise ValueError(f"conditions.{name}.{error}") from error
        return CaptionEmbedding(encoder, width)

    def recorded(self, module: CaptionEmbedding) -> Self:
        """This configuration with all that `build` needs to rebuild `module`."""
        if not isinstance(self.encoder, PretrainedConfig):
            return self
        assert isinstance(module.encoder, PretrainedEncoder)
        return self.model_copy(update={"encoder": self.encoder.recorded(module.encoder)})

    def rebuilt_as(self, recorded: TextConfig) -> Self:
        """This configuration with the architecture of a pretrained encoder that `recorded` has."""
        mine, theirs = self.encoder, recorded.encoder
        if not isinstance(mine, PretrainedConfig) or not isinstance(theirs, PretrainedConfig):
            return self
        return self.model_copy(update={"encoder": mine.model_copy(update={"architecture": theirs.architecture})})


class CaptionEmbedding(nn.Module):
    """Tokens [B, T] to vectors [B, width] and sequences of 1 + T vectors, of which the first is a summary.

    The vector is the sum of the sequence over the square root of its length: words that are rare in captions, what an
    image is of, keep their share beside those that are in all of them. An unknown caption has no tokens; its sequence
    is the summary alone.
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
        there = present[..., None].to(tokens.dtype)
        vector = (self.outward(tokens) * there).sum(1) / there.sum(1).sqrt()
        return vector, Text(tokens, present)
