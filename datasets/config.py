"""The `data:` section of a run's YAML."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from cluster.storage.sizes import Bytes
from cluster.storage.storage import absolute, is_local
from datasets.conditions.config import ConditionConfig, TextConfig
from datasets.images.kinds import MAX_PIXELS
from datasets.section import MayChange, Section


def _absolute(urls: str | tuple[str, ...]) -> str | tuple[str, ...]:
    if isinstance(urls, str):
        return urls and absolute(urls)
    return tuple(absolute(url) for url in urls)


def _check_index(name: str, index: str | tuple[str, ...], entries: str, urls: str | tuple[str, ...]) -> None:
    """Raise ValueError unless there is one index for each entry."""
    count, wanted = (1 if isinstance(value, str) else len(value) for value in (index, urls))
    if index and urls and count != wanted:
        raise ValueError(f"{name} has {count} URLs for {wanted} entries of {entries}; it has one for each")


Urls = str | tuple[str, ...]


class MixedSet(Section):
    """One set of a mixture."""

    shards: Annotated[Urls, MayChange]
    """As `data.shards`."""
    index: Annotated[Urls, MayChange] = ""
    """As `data.index`."""
    weight: int = Field(default=1, ge=1)
    """Share of the images that come from this set: weight / sum of weights."""

    @model_validator(mode="after")
    def _one_index_each(self) -> MixedSet:
        _check_index("index", self.index, "shards", self.shards)
        return self


class TransformConfig(Section):
    """Crop, resize and flip. The random parts depend only on (seed, position)."""

    size: tuple[int, int]
    """Output size: [height, width] in pixels, at most 67,108,864 in all."""
    crop: Literal["centre", "random", "none"] = "centre"
    """Crop before resizing. centre: the largest crop of the output's aspect ratio. random: one of random scale and
    place (training only; evaluation crops the centre). none: resize the whole image, which changes its aspect ratio."""
    scale: tuple[float, float] = (0.5, 1.0)
    """With `crop: random`: range of the crop's sides, as a fraction of the largest possible crop's: 0 < low <= high
    <= 1."""
    flip: bool = False
    """Random horizontal flip, p = 0.5 (training only)."""

    @field_validator("size")
    @classmethod
    def _possible(cls, size: tuple[int, int]) -> tuple[int, int]:
        if min(size) < 1 or size[0] * size[1] > MAX_PIXELS:
            raise ValueError(f"{size[0]} x {size[1]} is not a size between 1 and {MAX_PIXELS:,} pixels")
        return size

    @field_validator("scale")
    @classmethod
    def _a_range(cls, scale: tuple[float, float]) -> tuple[float, float]:
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"{scale[0]:g} to {scale[1]:g} is not a range of fractions: 0 < low <= high <= 1")
        return scale


class PatchesConfig(Section):
    """Keep the shape of each image: resize it to the largest grid of patches that it fills and crop what is left over,
    less than a patch, at random in training. For models that take images of any shape. The random parts depend only on
    (seed, position)."""

    patches: int = Field(ge=1, le=1 << 16)
    """N: patches of an image at most; every row of a batch has N, the others being padding."""
    patch: int = Field(ge=1, le=1 << 10)
    """P: height and width of a patch, pixels."""
    min_side: int = Field(default=0, ge=0)
    """Enlarge images whose smaller side has fewer pixels than this to this, as far as N patches allow. 0: no image is
    enlarged, except one that is smaller than a patch."""
    smaller: float = Field(default=0.0, ge=0, le=1)
    """Probability of a smaller grid, of at most N / 4 to N patches, evenly (training only; Dehghani et al. 2023,
    NaViT, arXiv 2307.06304)."""
    flip: bool = False
    """Random horizontal flip, p = 0.5 (training only)."""

    @model_validator(mode="after")
    def _possible(self) -> PatchesConfig:
        if self.patches * self.patch**2 > MAX_PIXELS:
            each = f"{self.patch} x {self.patch}"
            raise ValueError(f"{self.patches} patches of {each} have more than {MAX_PIXELS:,} pixels")
        return self


def _kind_of_transform(value: object) -> str:
    patches = "patches" in value or "patch" in value if isinstance(value, dict) else isinstance(value, PatchesConfig)
    return "PatchesConfig" if patches else "TransformConfig"


AnyTransform = Annotated[
    Annotated[TransformConfig, Tag("TransformConfig")] | Annotated[PatchesConfig, Tag("PatchesConfig")],
    Discriminator(_kind_of_transform),
]


class DiskCacheConfig(Section):
    """A cache of remote shards on a local disk, shared by all ranks and runs of a machine."""

    folder: str
    """Path of the cache on a local disk. Runs with the same path share it. It can be deleted at any time."""
    size: Bytes = 16 << 30
    """Maximum size in bytes ("16GiB"). Useful for sets that fit: a larger set has few hits."""


class DataConfig(Section):
    """The images of a run and how they are read."""

    shards: Annotated[Urls, MayChange] = ""
    """Training shards: URL of a folder (a path, s3://, gs://, az://); a pattern such as
    s3://bucket/train/{000000..000099}.tar or s3://bucket/train/a-*.tar; or a list of these, read as one set. May change
    on resume to a copy of the same shards, with the same names, counts and checksums."""
    index: Annotated[Urls, MayChange] = ""
    """URL of the index of the training shards, or a list with one for each entry of `shards`. Default:
    <shards>/index."""
    mixture: tuple[MixedSet, ...] = ()
    """Instead of `shards`: several sets mixed by integer weights. Each image is seen exactly once in each epoch of its
    set."""
    validation: Annotated[Urls, MayChange] = ""
    """Held-out shards, given as `shards` are. Empty: no evaluation during training. Checkpoints are only compared
    (`trainer.checkpoints.keep_best`) by their bounds on the same set."""
    validation_index: Annotated[Urls, MayChange] = ""
    """URL of the index of the held-out shards, given as `index` is. Default: <validation>/index."""
    image: str = ""
    """Extension of the member that is the image, where samples have several (`image.jpg`, `mask.png`); the indexes of
    all sets must have been made for it (jobs.index --image). Empty: as in the index."""
    columns: Annotated[tuple[str, ...], MayChange] = ()
    """URLs of what `jobs.encode` made of these shards, training and held-out ones: their members are joined to the
    samples by shard and key, and named in `conditions` like those of the shards. May change on resume to copies."""
    streams: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """C: each batch of B images takes B/C from each of C streams. Must divide the global batch; at least the number of
    ranks. auto: the largest divisor of the batch up to 64 whose windows fit into 1 GiB; fixed for the life of a run. If
    the images in a shard are alike (sorted by class, frames of a film), the number of streams decides how well batches
    are mixed: in the worst case the variance of a batch's mean is 14.5 times that of a full shuffle with 8 streams, 3.7
    with 32, 2.0 with 64; windows matter little (batches of 128; tests/benchmarks/shuffle.py)."""
    window: int = Field(default=256, ge=1)
    """W: images in a window. A stream reads one window at a time and shuffles it."""
    workers: Annotated[Annotated[int, Field(ge=0)] | Literal["auto"], MayChange] = "auto"
    """Loader processes per rank. 0: a thread of the training process. auto: 0 for a set that fits `cache`, else the
    cores per rank, at most 8."""
    memory: Annotated[Bytes, MayChange] = 1 << 30
    """Bound on the encoded images that a rank holds, read-ahead included, in bytes ("1GiB"). If the windows do not fit,
    each image is a request of its own."""
    cache: Annotated[Bytes, MayChange] = 512 << 20
    """A set whose decoded images fit into this many bytes ("512MiB") is decoded once and kept in memory."""
    disk_cache: Annotated[DiskCacheConfig | None, MayChange] = None
    """Keep what is read from an object store on a local disk. null: each epoch reads it again."""
    transform: AnyTransform | None = None
    """Crop, resize and flip: to one size, or to patches of images of any shape. null: all images must have one size."""
    conditions: dict[str, ConditionConfig] = {}
    """What images are conditioned on, by name. Empty: `label`, the class, for sets with labels. A model chooses among
    them by name."""
    accept_changes: Annotated[bool, MayChange] = False
    """Resume although training shards were repaired or left out since the run was started; the ledger names them."""
    on_bad: Annotated[Literal["stop", "quarantine"], MayChange] = "stop"
    """On a corrupt image: stop, or quarantine it (zero weight, logged)."""
    bad_share: Annotated[float, MayChange] = Field(default=0.001, ge=0, le=1)
    """Largest fraction of an epoch's images that may be quarantined, or left out of an evaluation; the run stops above
    it. Counted over all ranks at each row of metrics and each checkpoint, and at once if one rank exceeds it alone."""

    @model_validator(mode="after")
    def _one_or_the_other(self) -> DataConfig:
        if bool(self.shards) == bool(self.mixture):
            raise ValueError("give either shards or mixture")
        if self.index and self.mixture:
            raise ValueError("index goes with shards; the sets of a mixture have an index each")
        _check_index("index", self.index, "shards", self.shards)
        _check_index("validation_index", self.validation_index, "validation", self.validation)
        return self

    def absolute(self) -> DataConfig:
        """The same with relative local paths made absolute, so that they mean the same in every process of a job."""
        paths = {name: _absolute(getattr(self, name)) for name in ("shards", "index", "validation", "validation_index")}
        mixture = tuple(
            mixed.model_copy(update={name: _absolute(getattr(mixed, name)) for name in ("shards", "index")})
            for mixed in self.mixture
        )
        conditions = {
            name: condition.model_copy(update={"tokenizer": _absolute(condition.tokenizer)})
            if isinstance(condition, TextConfig)
            else condition
            for name, condition in self.conditions.items()
        }
        paths["columns"] = _absolute(self.columns)
        disk = self.disk_cache and self.disk_cache.model_copy(update={"folder": absolute(self.disk_cache.folder)})
        return self.model_copy(update={**paths, "mixture": mixture, "conditions": conditions, "disk_cache": disk})

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
