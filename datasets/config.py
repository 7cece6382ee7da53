"""The `data:` section of a run's YAML."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from cluster.storage.storage import absolute, is_local

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def parse_bytes(value: object) -> object:
    """A number of bytes from an integer or a string such as "512MiB" or "2 GB"."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmgt]i?)?b?\s*", value.lower())
    if not match:
        raise ValueError(f"{value!r} is not a number of bytes such as 512MiB or 2GB")
    return int(float(match[1]) * _UNITS[match[2] or ""])


def in_words(size: float) -> str:
    """A number of bytes for a person: 512 bytes, 1.5 MiB, 300 GiB."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size:.0f} {unit}" if size >= 100 or unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError


def _absolute(urls: str | tuple[str, ...]) -> str | tuple[str, ...]:
    if isinstance(urls, str):
        return urls and absolute(urls)
    return tuple(absolute(url) for url in urls)


Bytes = Annotated[int, BeforeValidator(parse_bytes), Field(ge=0)]
Urls = str | tuple[str, ...]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class MixedSet(_Section):
    """One of several sets that are mixed."""

    shards: Urls
    """As `data.shards`."""
    index: str = ""
    """As `data.index`."""
    weight: int = Field(default=1, ge=1)
    """Of each sum-of-weights rounds of the order, so many take their images from this set."""


class TransformConfig(_Section):
    """From an image of any size to one of the run's size; random parts depend on (seed, position) alone."""

    size: tuple[int, int]
    """(height, width) of what comes out, pixels."""
    crop: Literal["centre", "random", "none"] = "centre"
    """What is cut out before resizing: the largest part of the right shape in the middle, or at a random place of a
    random scale (training only), or the whole image, whose shape then changes."""
    scale: tuple[float, float] = (0.5, 1.0)
    """With `crop: random`: the least and the largest share of the largest possible part's sides."""
    flip: bool = False
    """Mirror every other image, left to right (training only)."""


class DiskCacheConfig(_Section):
    """Where blocks of remote shards are kept on this machine, for all its ranks and runs."""

    folder: str
    """Path of a folder of a local disk, which every run that names it shares. Deleting it does no harm."""
    size: Bytes = 16 << 30
    """The bytes that it may take ("16GiB"). Worth it for sets that fit: of a larger one little is found again."""


class DataConfig(_Section):
    """Which images a run sees, and by what means they are read."""

    shards: Urls = ""
    """URL of the folder of training shards (a path, s3://, gs://, az://); a pattern such as
    s3://bucket/train/{000000..000099}.tar or s3://bucket/train/a-*.tar; or a list of these, taken as one set."""
    index: str = ""
    """URL of the index of the training shards, where it does not lie in <shards>/index."""
    mixture: tuple[MixedSet, ...] = ()
    """In place of `shards`: several sets mixed by integer weights, each seen exactly once in every epoch of its own."""
    validation: Urls = ""
    """As `shards`, held out; empty: nothing is evaluated during training."""
    streams: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """C: every batch takes B/C images of each of C streams. Must divide the global batch; no fewer than ranks. auto:
    the largest divisor of the batch up to 64, as far as their windows fit into 1 GiB; fixed for the run's life. Where
    shards hold images that are alike (sorted by class, frames of a film), streams decide how well batches are mixed: in
    the worst case the variance of a batch's mean is 14.5 times that of a full shuffle with 8 streams, 3.7 with 32, 2.0
    with 64, while windows matter little (batches of 128; tests/benchmarks/shuffle.py)."""
    window: int = Field(default=256, ge=1)
    """W, images: a stream is read in windows of W images and shuffled inside them."""
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """Loader processes a rank; 0: a thread in the training process; auto: 0 for a set that fits `cache`."""
    memory: Bytes = 1 << 30
    """Bound on the encoded images that a rank holds, read-ahead included: bytes ("1GiB")."""
    cache: Bytes = 512 << 20
    """A set whose decoded images fit into this many bytes is decoded once and kept in memory ("512MiB")."""
    disk_cache: DiskCacheConfig | None = None
    """Keeps what is read from an object store on a local disk; none: every epoch reads it anew."""
    transform: TransformConfig | None = None
    """How images are cropped, resized and flipped; none: they all have the size that the index says."""
    on_bad: Literal["stop", "quarantine"] = "stop"
    """What an image that is damaged or does not decode does: end the run, or weigh nothing and be written down."""
    bad_share: float = Field(default=0.001, ge=0, le=1)
    """With `on_bad: quarantine`: the share of an epoch's images beyond which the run ends all the same. Counted over
    all ranks whenever a row of metrics or a checkpoint is made, and at once where one rank alone has met so many."""

    @model_validator(mode="after")
    def _one_or_the_other(self) -> DataConfig:
        if bool(self.shards) == bool(self.mixture):
            raise ValueError("give either shards or mixture")
        if self.index and not isinstance(self.shards, str):
            raise ValueError("index goes with a single entry of shards")
        return self

    def absolute(self) -> DataConfig:
        """The same with relative local paths made absolute, so that they mean the same in every process of a job."""
        paths = {name: _absolute(getattr(self, name)) for name in ("shards", "index", "validation")}
        mixture = tuple(
            mixed.model_copy(update={name: _absolute(getattr(mixed, name)) for name in ("shards", "index")})
            for mixed in self.mixture
        )
        disk = self.disk_cache and self.disk_cache.model_copy(update={"folder": absolute(self.disk_cache.folder)})
        return self.model_copy(update={**paths, "mixture": mixture, "disk_cache": disk})

    @field_validator("disk_cache")
    @classmethod
    def _on_this_machine(cls, disk_cache: DiskCacheConfig | None) -> DiskCacheConfig | None:
        if disk_cache and not is_local(disk_cache.folder):
            raise ValueError("folder has to be a path of a local disk")
        return disk_cache

    @property
    def weights(self) -> tuple[int, ...]:
        """The weights of the mixed sets; (1,) for a single set."""
        return tuple(mixed.weight for mixed in self.mixture) or (1,)
