"""What a prediction is for: a run whose set exists, or a configuration for images that are only described."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from datasets.conditions.config import TextConfig
from jobs.config.resolved import ResolvedRun
from jobs.config.schema import RunConfig
from jobs.errors import ConfigError
from trainer.condition_values import TextSpec
from trainer.distributed.device import ResolvedPrecision, resolve_precision
from trainer.images import ImageSpec
from trainer.models import Model


class Setting(NamedTuple):
    """A configuration and the images that it is for."""

    config: RunConfig
    spec: ImageSpec
    precision: ResolvedPrecision
    streams: int
    build: Callable[[], Model]

    @property
    def ranks(self) -> tuple[int, int]:
        """The least and the largest number of ranks."""
        workers = self.config.ray.workers
        return (workers, workers) if isinstance(workers, int) else workers


def of_run(run: ResolvedRun) -> Setting:
    """The setting of a run."""
    return Setting(run.config, run.spec, run.precision, run.streams, run.build_model)


def described(config: RunConfig, shape: str, classes: int) -> Setting:
    """The setting of a configuration for images of a `shape`, "3x256x256", with `classes` (0: none).

    Captions are those of `data.conditions`, as long as they may be. Raises ConfigError in one line.
    """
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)x([1-9]\d*)", shape)
    if match is None:
        raise ConfigError(f"--image {shape}: must be CHANNELSxHEIGHTxWIDTH, as in 3x256x256")
    texts = tuple(
        TextSpec(name, given.vocabulary, given.max_tokens)
        for name, given in config.data.conditions.items()
        if isinstance(given, TextConfig)
    )
    channels, height, width = map(int, match.groups())
    spec = ImageSpec(channels, height, width, classes=classes, texts=texts)

    def build() -> Model:
        try:
            return config.model.build(spec)
        except ValueError as error:
            raise ConfigError(f"model.{error}") from error

    precision = resolve_precision(config.trainer.precision, gpu=config.ray.gpus_per_worker != 0)
    return Setting(config, spec, precision, config.trainer.batch, build)
