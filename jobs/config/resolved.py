"""A configuration with everything decided that depends on the data or on the machine: once, for every command."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field

import torch

from cluster.storage.errors import StorageError
from cluster.storage.storage import Storage, absolute
from datasets.config import PatchesConfig
from datasets.errors import DataError
from datasets.loading.conditions import check_conditions
from datasets.loading.transforms import grids_of, output_format
from datasets.order.dealing import check_batch
from datasets.order.streams import streams_of
from datasets.order.versions import NEWEST
from datasets.shards.index import Index
from jobs.config.fed_conditions import check_fed
from jobs.config.loading import config_of
from jobs.config.other_images import check_format, check_labels, warnings
from jobs.config.schema import RunConfig
from jobs.config.tokenizers import known_tokenizers, texts_of
from jobs.errors import ConfigError
from trainer.checkpoints.export import DESCRIPTION, load, recorded_config
from trainer.distributed.device import ResolvedPrecision, resolve_precision
from trainer.images import ImageSpec, PatchSpec
from trainer.models import Model
from trainer.prompts import parse_prompts


@dataclass(frozen=True)
class ResolvedRun:
    """What a run trains on, and how. Made by `resolve`."""

    config: RunConfig
    """Local paths are absolute, `data.streams` is a number. `trainer.precision` is as given."""
    index: Index
    """Of the training images."""
    held_out: Index | None
    """Of `data.validation`; None: the run has none."""
    spec: ImageSpec
    """The images as the model sees them, after `data.transform`."""
    precision: ResolvedPrecision
    """What `trainer.precision` means on the ranks' devices."""
    tokenizers: dict[str, str] = field(default_factory=dict)
    """The tokenizers of the captions that exist already, by name of the condition: the contents of tokenizer.json."""
    order_version: int = NEWEST
    """Version of the order of the training images: the newest, or that of the checkpoint that the run continues from
    (`jobs.config.resume.continued`)."""

    @property
    def streams(self) -> int:
        """C, the number of streams of the training set."""
        assert isinstance(self.config.data.streams, int)
        return self.config.data.streams

    def build_model(self, new: bool = False) -> Model:
        """The model, initialised by `seed`. Unless it is `new`, the weights of its parts are arbitrary, and the run's
        folder is enough to build it.

        Raises ConfigError if it does not fit the images, their labels or the held-out ones, TrainingError or
        StorageError for a part named by URL.
        """
        config = self.config.model
        if new or not Storage(self.config.run).exists(DESCRIPTION):  # older runs may have more conditions
            check_fed(config, self.config.data, self.index)
        torch.manual_seed(self.config.seed)
        try:
            recorded = None if new else recorded_config(Storage(self.config.run))
            model = None if new else config.rebuild(self.spec, recorded)
            model = model or config.build_new(self.spec, load)
        except ValueError as error:
            raise ConfigError(f"model.{error}") from error
        model.class_names = self.index.meta.class_names
        if self.held_out is not None:
            check_labels(model, self.held_out)
        try:
            parse_prompts(model, self.config.trainer.prompts, "trainer.prompts")
        except ValueError as error:
            raise ConfigError(str(error)) from error
        return model

    @property
    def warnings(self) -> list[str]:
        """Lines for the user about the sets of images that nothing else reports."""
        mixed = [self.index.mixed_colours] if self.index.mixed_colours else []
        return mixed + (warnings(self.index, self.held_out) if self.held_out is not None else [])


def resolve(config: RunConfig, gpu: bool | None = None) -> ResolvedRun:
    """Open the indexes and decide what `config` leaves open. Idempotent.

    `gpu`: whether the ranks have GPUs; None: as this machine. Raises ConfigError, DataError or StorageError in one
    line.
    """
    config = with_absolute_paths(config)
    index = Index.of(config.data)
    streams = streams_of(config.data, index, config.trainer.batch)
    _check_batch(config, streams)
    config = config.model_copy(update={"data": config.data.model_copy(update={"streams": streams})})
    check_conditions(config.data, index)
    tokenizers = known_tokenizers(config.data, Storage(config.run))
    format, texts = output_format(config.data, index), texts_of(config.data, tokenizers)
    spec = ImageSpec(*format[:5], texts=texts, patches=_patches(config, index))
    held_out = Index.held_out(config.data)
    if held_out is not None:
        check_format(spec, config.data, held_out)
        check_conditions(config.data, held_out)
    return ResolvedRun(
        config=config,
        index=index,
        held_out=held_out,
        spec=spec,
        tokenizers=tokenizers,
        precision=resolve_precision(config.trainer.precision, gpu),
    )


def _patches(config: RunConfig, index: Index) -> PatchSpec | None:
    """The patches of the images of `data.transform`; None: they are whole images of one size.

    Raises ConfigError if the model takes no patches, DataError if the index does not list the sizes of the images.
    """
    transform, model = config.data.transform, config.model
    if not isinstance(transform, PatchesConfig):
        return None
    if not model.takes_patches:
        kind = model.model_dump()["kind"]
        raise ConfigError(
            f"data.transform.patches: this model of kind {kind} takes images of one size; set data.transform.size: "
            "[height, width] instead, or use a diffusion with denoiser.network.kind: dit"
        )
    grids = grids_of(transform, index)
    return PatchSpec(transform.patches, transform.patch, tuple((*grid, images) for grid, images in grids.items()))


def _check_batch(config: RunConfig, streams: int) -> None:
    """Raises DataError unless the streams divide the global batch; ConfigError where another batch began the run."""
    batch = before = config.trainer.batch
    try:
        check_batch(batch, streams)
    except DataError as error:
        with contextlib.suppress(ConfigError, StorageError):
            before = config_of(Storage(config.run)).trainer.batch
        if before == batch:
            raise
        raise ConfigError(f"{config.run}: trainer.batch is {before} in the run and {batch} here; {error}") from error


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """The same run from every working directory: relative local paths made absolute."""
    changed: dict[str, object] = {"run": absolute(config.run), "data": config.data.absolute()}
    if config.init_from:
        changed["init_from"] = absolute(config.init_from)
    return config.model_copy(update=changed)
