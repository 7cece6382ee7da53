"""Runs of small models on one device: `fit` itself, with images that are made in memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from accelerate import Accelerator
from pydantic import TypeAdapter
from torch import Tensor

from tests.trainer.models import batch
from trainer.checkpoints.checkpointer import Checkpointer
from trainer.checkpoints.retention import CheckpointConfig
from trainer.distributed.requests import Requests
from trainer.images import ImageSpec
from trainer.models import Model, ModelConfig
from trainer.training.config import TrainerConfig
from trainer.training.events import Events, Listener, Pictures
from trainer.training.loop import Outcome, fit
from trainer.training.optimizer import OptimConfig
from trainer.training.state import TrainState

SET = 512  # training images


@dataclass
class Images:
    """A batch; satisfies `trainer.training.data.Batch`."""

    images: Tensor
    positions: Tensor
    weights: Tensor
    conditions: dict[str, Tensor]


class Stream:
    """Batches without end, or of a held-out set; satisfies `Batches`."""

    waited = 0.0

    def __init__(self, batches: Iterator[Images]):
        self.batches = batches

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Images:
        return next(self.batches)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None: ...


class Waves:
    """The waves of tests.trainer.models on the device; satisfies `trainer.training.data.Data`."""

    validation_set = "waves"

    def __init__(self, spec: ImageSpec, size: int, device: torch.device):
        self.size, self.device = size, device
        self.train, self.held_out = (batch(spec, SET, seed).to(device) for seed in (0, 1))

    def training(self, images: int) -> Stream:
        return Stream(self._batch(self.train, first) for first in itertools.count(images, self.size))

    def validation(self) -> Stream:
        return Stream(self._batch(self.held_out, first) for first in range(0, min(SET, 4 * self.size), self.size))

    def worst(self, evaluation):
        return []

    def figures(self, images: int) -> dict[str, Any]:
        return {}

    def unreported(self, images: int) -> dict[str, Any]:
        return {}

    def _batch(self, images: Tensor, first: int) -> Images:
        positions = torch.arange(first, first + self.size, device=self.device)
        return Images(
            images=images[positions % SET],
            positions=positions,
            weights=torch.ones(self.size, device=self.device),
            conditions={},
        )


class StopAfter(Requests):
    """Requests a stop after some steps."""

    def __init__(self, steps: int):
        self.left = steps

    def save(self) -> bool:
        self.left -= 1
        return False

    def stop(self) -> bool:
        return self.left <= 0


class Rows(Listener):
    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def on_row(self, row: dict[str, Any], pictures: Pictures) -> None:
        self.rows.append(row)


class Trained(NamedTuple):
    state: TrainState
    outcome: Outcome
    rows: list[dict[str, Any]]


def build(spec: ImageSpec, config: dict[str, Any]) -> Model:
    """The model with the weights of seed 0."""
    torch.manual_seed(0)
    model: Model = TypeAdapter(ModelConfig).validate_python(config).build(spec)
    return model


def begun(model: Model, accelerator: Accelerator, size: int, steps: int, **trainer: Any) -> TrainState:
    """The state of a run of `steps` steps of `size` images."""
    optim = OptimConfig(lr=1e-3, schedule="constant", posthoc=size * steps)
    return TrainState.create(model, settings(size, steps, **trainer), optim, accelerator, 0, {"config": {}})


def settings(size: int, steps: int, **trainer: Any) -> TrainerConfig:
    often = {"log_every": size, "evaluate_every": size * steps, "checkpoint_every": size * steps, "pictures": 0}
    return TrainerConfig(images=size * steps, batch=size, **often | trainer)


def train(
    model: Model,
    accelerator: Accelerator,
    folder: Path,
    steps: int,
    size: int = 32,
    stop: int | None = None,
    **trainer: Any,
) -> Trained:
    """Train the run of a folder for `steps` steps in all, or to its step `stop`; resumes what is there."""
    config = settings(size, steps, **trainer)
    rows = Rows()
    events = Events([rows])
    checkpointer = Checkpointer(str(folder), CheckpointConfig(), print, events.before_commit, events.commit)
    saved = checkpointer.claim(lambda sections: None)
    state = begun(model, accelerator, size, steps, **trainer)
    if saved is not None:
        checkpointer.restore(state.restore)
    data, requests = Waves(model.spec, size, accelerator.device), StopAfter(stop or 1 << 60)
    outcome = fit(state, config, data, checkpointer, events, requests, accelerator)
    return Trained(state, outcome, rows.rows)
