"""The schema of a run's configuration."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import AfterValidator, NonNegativeInt, PositiveInt, model_validator

from datasets.config import DataConfig
from trainer.checkpoints.weights import width_of
from trainer.config import Config, MayChange
from trainer.errors import TrainingError
from trainer.models import ModelConfig
from trainer.tracking.wandb_run import TrackingConfig
from trainer.training.config import TrainerConfig
from trainer.training.optimizer import OptimConfig


class RayConfig(Config):
    """What a run requests from a Ray cluster."""

    workers: PositiveInt | tuple[PositiveInt, PositiveInt] = 1
    """Number of ranks, one GPU each; or [min, max], of which Ray uses what is available (elastic)."""
    gpus_per_worker: NonNegativeInt | None = None
    """GPUs per rank. null: one if the cluster has any."""
    cpus_per_worker: PositiveInt = 1
    """CPU cores per rank."""
    max_failures: NonNegativeInt = 3
    """Failures over the life of the run after which Ray gives up. Pre-emptions do not count."""


def _known_weights(weights: str) -> str:
    try:
        width_of(weights)
    except TrainingError as error:
        raise ValueError(str(error)) from error
    return weights


def _not_empty(url: str) -> str:
    if not url:
        raise ValueError("is empty; it names a folder")
    return url


class RunConfig(Config):
    """A run."""

    run: Annotated[str, AfterValidator(_not_empty), MayChange]
    """URL of the run folder: a path, or s3://, gs://, az://. May change on resume to a copy of the folder."""
    seed: NonNegativeInt = 0
    """Seed of the initial weights, the order of the data and the noise."""
    model: ModelConfig
    """The model, chosen by `kind`."""
    init_from: str | None = None
    """URL of a run or an export to take the initial weights from: a model of the same shapes. The optimizer, the
    averages and all counters start from zero."""
    init_weights: Annotated[str, AfterValidator(_known_weights)] = "ema"
    """Weights of `init_from` to use: ema, best, raw or posthoc:WIDTH."""
    data: DataConfig
    """The images and how they are read."""
    optim: OptimConfig = OptimConfig()
    """Optimizer, learning rate and averages of the weights."""
    trainer: TrainerConfig = TrainerConfig()
    """The training loop."""
    tracking: Annotated[TrackingConfig, MayChange] = TrackingConfig()
    """Where metrics and pictures are sent."""
    ray: Annotated[RayConfig, MayChange] = RayConfig()
    """Resources on a Ray cluster; ignored by jobs.train_local."""

    @model_validator(mode="after")
    def _evaluated(self) -> Self:
        if self.trainer.patience and not self.data.validation:
            raise ValueError("trainer.patience: counts evaluations; set data.validation")
        return self
