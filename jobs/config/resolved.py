"""A configuration with everything decided that depends on the data or on the machine: once, for every command."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cluster.storage.storage import absolute
from datasets.images.transform import output_format
from datasets.order.dealing import check_batch
from datasets.order.streams import streams_of
from datasets.shards.index import Index
from jobs.config.schema import RunConfig
from jobs.errors import ConfigError
from trainer.distributed.device import ResolvedPrecision, resolve_precision
from trainer.images import ImageSpec
from trainer.models import Model


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

    @property
    def streams(self) -> int:
        """C, the number of streams of the training set."""
        assert isinstance(self.config.data.streams, int)
        return self.config.data.streams

    def build_model(self) -> Model:
        """The model, initialised by `seed`. Raises ConfigError if it does not fit the images."""
        torch.manual_seed(self.config.seed)
        try:
            return self.config.model.build(self.spec)
        except ValueError as error:
            raise ConfigError(f"model.{error}") from error


def resolve(config: RunConfig, gpu: bool | None = None) -> ResolvedRun:
    """Open the indexes and decide what `config` leaves open. Idempotent.

    `gpu`: whether the ranks have GPUs; None: as this machine. Raises ConfigError, DataError or StorageError in one
    line.
    """
    config = with_absolute_paths(config)
    index = Index.of(config.data)
    streams = streams_of(config.data, index, config.trainer.batch)
    check_batch(config.trainer.batch, streams)
    config = config.model_copy(update={"data": config.data.model_copy(update={"streams": streams})})
    return ResolvedRun(
        config=config,
        index=index,
        held_out=Index.open(config.data.validation) if config.data.validation else None,
        spec=ImageSpec(*output_format(config.data, index)[:5]),
        precision=resolve_precision(config.trainer.precision, gpu),
    )


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """The same run from every working directory: relative local paths made absolute."""
    changed: dict[str, object] = {"run": absolute(config.run), "data": config.data.absolute()}
    if config.init_from:
        changed["init_from"] = absolute(config.init_from)
    urls = {name: absolute(getattr(config.model, name)) for name in config.model.URLS}
    changed["model"] = config.model.model_copy(update=urls)
    return config.model_copy(update=changed)
