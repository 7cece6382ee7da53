"""The `data:` section of a run's YAML."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40, "t": 10**12}


def parse_bytes(value: object) -> object:
    """A number of bytes from an integer or a string such as "512MiB" or "2 GB"."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmgt]i?)?b?\s*", value.lower())
    if not match:
        raise ValueError(f"{value!r} is not a number of bytes such as 512MiB or 2GB")
    return int(float(match[1]) * _UNITS[match[2] or ""])


Bytes = Annotated[int, BeforeValidator(parse_bytes), Field(ge=0)]


class DataConfig(BaseModel):
    """Which images a run sees, and by what means they are read."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    shards: str
    """URL of the folder of training shards (a path, s3://, gs://, az://)."""
    validation: str = ""
    """URL of the folder of held-out shards; empty: nothing is evaluated during training."""
    index: str = ""
    """URL of the index of the training shards, where it does not lie in <shards>/index."""
    streams: int = Field(default=8, ge=1)
    """C: every batch takes B/C images of each of C streams. Must divide the global batch; no fewer than ranks."""
    window: int = Field(default=256, ge=1)
    """W, images: a stream is read in windows of W images and shuffled inside them."""
    workers: int | Literal["auto"] = "auto"
    """Loader processes a rank; 0: a thread in the training process; auto: 0 for a set that fits `cache`."""
    memory: Bytes = 1 << 30
    """Bound on the encoded images that a rank holds, read-ahead included: bytes ("1GiB")."""
    cache: Bytes = 512 << 20
    """A set whose decoded images fit into this many bytes is decoded once and kept in memory ("512MiB")."""
