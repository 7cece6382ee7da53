"""Models with a likelihood p(x | z): what a sample shows of it, a draw or the mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from trainer.conditions import ConditionUses
from trainer.config import Config
from trainer.likelihoods.base import Likelihood
from trainer.models.conditioned import ConditionedModel
from trainer.noise import Noise

Decode = Literal["sample", "mean"]


class DecodeOptions(Config):
    """Options of `sample` of a model with a likelihood."""

    decode: Decode = "sample"
    """What an image shows of p(x | z): a draw (sample), or the mean as the nearest levels (mean), which is smoother but
    no sample of the model. Pictures drawn in training, interpolations and trajectories show means."""


class DecodingModel(ConditionedModel):
    """A model that ends in a likelihood of the image given the latents."""

    @property
    def sampling(self) -> DecodeOptions:
        return DecodeOptions()

    @property
    def picture_options(self) -> Mapping[str, Any]:
        return {"decode": "mean"}

    def samples_in_words(self, options: Mapping[str, Any], uses: ConditionUses) -> str:
        return words_with_decode(super().samples_in_words(options, uses), options)


def decoded(likelihood: Likelihood, output: Tensor, noise: Noise, decode: Decode) -> Tensor:
    """An image of p(x | output), uint8 levels [B, C, H, W]."""
    return likelihood.mean(output) if decode == "mean" else likelihood.sample(output, noise)


def words_with_decode(words: str, options: Mapping[str, Any]) -> str:
    """`words` about samples, and what those made with `options` show of p(x | z)."""
    shown = "means" if options.get("decode") == "mean" else "draws"
    return f"{words}, {shown} of p(x | z)"
