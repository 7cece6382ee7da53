"""`data.conditions` in a run's YAML."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from datasets.section import Section


class ClassConfig(Section):
    """The class of an image, an integer, from its .cls member."""

    kind: Literal["class"]


class TextConfig(Section):
    """A caption, as tokens."""

    kind: Literal["text"]
    members: tuple[str, ...] = Field(default=("txt",), min_length=1)
    """Where captions are: extensions of members (`txt`), or fields of the .json member (`json.recaption`,
    `json.meta.title`). Of several, one is chosen for each image and epoch, by (seed, position)."""
    probabilities: tuple[float, ...] | None = None
    """Of `members`; they sum to 1. null: all equal."""
    max_tokens: int = Field(default=32, ge=1, le=4096)
    """Longer captions are cut."""
    tokenizer: str = ""
    """URL of a tokenizer.json (of Hugging Face's tokenizers). Empty: a byte-pair tokenizer is trained on captions of
    the set when the run starts, and saved in the run folder and in exports."""
    vocabulary: int = Field(default=4096, ge=300, le=1 << 20)
    """Most tokens of a tokenizer that is trained here."""
    missing: Literal["unknown", "bad"] = "unknown"
    """A caption that is missing, empty, not UTF-8 or longer than 1 MiB. unknown: the image has no caption, and is
    counted. bad: the image is corrupt, and `data.on_bad` decides."""

    @model_validator(mode="after")
    def _matching(self) -> Self:
        given = self.probabilities
        if given is not None and (len(given) != len(self.members) or min(given) < 0 or not math.isclose(sum(given), 1)):
            raise ValueError(f"probabilities: {len(self.members)} numbers that sum to 1, one for each of members")
        for source in self.members:
            if source.startswith(".") or source.endswith(".") or not source or source == "json":
                raise ValueError(f"members: {source!r} is neither an extension (txt) nor a field (json.caption)")
        return self

    @property
    def shares(self) -> tuple[float, ...]:
        """The probability of each of `members`."""
        return self.probabilities or (1 / len(self.members),) * len(self.members)


class VectorConfig(Section):
    """Numbers from an encoder, in a .npy member of float16, float32 or float64 and any shape."""

    kind: Literal["vector"]
    member: str
    """Extension of the member: `clip.npy`."""
    size: int = Field(ge=1, le=1 << 20)
    """How many numbers."""
    missing: Literal["unknown", "bad"] = "unknown"
    """Of a sample without the member. unknown: zeros, and counted. bad: the image is corrupt; `data.on_bad` decides."""


class SequenceConfig(Section):
    """The tokens of a caption through an encoder, a vector each, from a .npy member of shape [T, size]."""

    kind: Literal["sequence"]
    member: str
    """Extension of the member: `text.npy`, as `jobs.encode --with text:FOLDER` names it."""
    size: int = Field(ge=1, le=1 << 16)
    """Length of each vector."""
    max_tokens: int = Field(default=77, ge=1, le=4096)
    """Longer sequences are cut. Batches are padded to this length, in float16."""


class GeometryConfig(Section):
    """Height and width of the original image and the place of the crop (SDXL, arXiv 2307.01952, section 2.2)."""

    kind: Literal["geometry"]


ConditionConfig = Annotated[
    ClassConfig | TextConfig | VectorConfig | SequenceConfig | GeometryConfig, Field(discriminator="kind")
]
"""What images are conditioned on: classes, captions, vectors, sequences, crops, read from the members of a sample."""
