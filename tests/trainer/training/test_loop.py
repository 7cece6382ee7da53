"""`fit` by itself: a toy model, batches made here, no configuration file and no shards."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from trainer.checkpoints.checkpointer import Checkpointer
from trainer.checkpoints.journal import read_metrics
from trainer.checkpoints.retention import CheckpointConfig
from trainer.distributed.requests import Requests
from trainer.elbo import Elbo
from trainer.images import ImageSpec
from trainer.models.base import Model
from trainer.tracking.listener import Listener
from trainer.training.config import TrainerConfig
from trainer.training.events import Events
from trainer.training.loop import due, fit
from trainer.training.optimizer import OptimConfig
from trainer.training.state import TrainState

BATCH = 4


class Level(Model):
    """One parameter w; an image of level v costs (w - v)^2 nats, one of level 255 infinitely many."""

    spec = ImageSpec(1, 1, 1)

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))

    def forward(self, images, condition, noise, progress):
        levels = images.flatten(1)[:, 0].float()
        cost = (self.w - levels) ** 2
        return Elbo(torch.where(levels == 255, torch.inf, cost), {})


class Images:
    """Batches of four images, the last of which has weight zero; satisfies `trainer.training.data.Data`."""

    def __init__(self, last: int):
        self.levels = torch.tensor([1, 2, 3, last], dtype=torch.uint8)

    validation_set = None

    def training(self, images):
        return Stream(self.batch(n) for n in itertools.count(images // BATCH))

    def validation(self):
        return None

    def batch(self, number):
        weights = torch.tensor([1.0, 1.0, 1.0, 0.0])
        positions = torch.arange(BATCH) + number * BATCH
        conditions = {"label": torch.zeros(BATCH, dtype=torch.int64)}
        return SimpleNamespace(
            images=self.levels.reshape(BATCH, 1, 1, 1), conditions=conditions, positions=positions, weights=weights
        )

    def worst(self, evaluation):
        return []

    def figures(self, images):
        return {}

    def unreported(self, images):
        return {}


class Stream:
    waited = 0.0

    def __init__(self, batches):
        self.batches = batches

    def __next__(self):
        return next(self.batches)

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        return None


class Recorder(Listener):
    def __init__(self):
        self.rows, self.commits, self.finished = [], [], 0

    def on_row(self, row, pictures):
        self.rows.append(row)

    def on_commit(self, commit):
        self.commits.append(commit.images)

    def finish(self):
        self.finished += 1


class Broken(Recorder):
    def finish(self):
        super().finish()
        raise OSError("no route to host")


def train(folder, last=7, listeners=(), micro_batch=None, requests=Requests()):  # noqa: B008
    config = TrainerConfig(
        images=10 * BATCH, batch=BATCH, micro_batch=micro_batch, log_every=BATCH, checkpoint_every=5 * BATCH, pictures=0
    )
    accelerator = Accelerator(cpu=True)
    warnings = []
    events = Events(listeners, warnings.append)
    checkpointer = Checkpointer(str(folder), CheckpointConfig(), print, events.before_commit, events.commit)
    saved = checkpointer.claim(lambda sections: None)
    optim = OptimConfig(lr=0.1, schedule="constant")
    state = TrainState.create(Level(), config, optim, accelerator, seed=0, fingerprint={"config": {}})
    if saved is not None:
        checkpointer.restore(state.restore)
    with events.listening():
        outcome = fit(state, config, Images(last), checkpointer, events, requests, accelerator)
    return state, outcome, warnings


def test_an_image_of_weight_zero_has_no_part_in_the_step_even_if_its_loss_is_infinite(tmp_path):
    finite, _, _ = train(tmp_path / "finite", last=7)
    infinite, outcome, _ = train(tmp_path / "infinite", last=255)
    assert outcome.finished
    assert torch.equal(finite.model.w, infinite.model.w)
    assert finite.model.w.item() > 0.5


def test_micro_batches_make_the_same_step(tmp_path):
    whole, _, _ = train(tmp_path / "whole")
    parts, _, _ = train(tmp_path / "parts", micro_batch=2)
    torch.testing.assert_close(whole.model.w, parts.model.w)


def test_listeners_hear_of_rows_and_commits_and_finish_in_spite_of_each_other(tmp_path):
    broken, recorder = Broken(), Recorder()
    _, _, warnings = train(tmp_path, listeners=(broken, recorder))
    assert [row["images"] for row in recorder.rows] == [n * BATCH for n in range(1, 11)]
    assert recorder.commits == [5 * BATCH, 10 * BATCH]
    assert (broken.finished, recorder.finished) == (1, 1)
    assert warnings == ["Broken failed at the end of the run: no route to host"]


def test_the_error_that_ended_a_run_is_not_hidden_by_a_listener(tmp_path):
    class Failing(Recorder):
        def on_row(self, row, pictures):
            raise ValueError("the cause")

    broken = Broken()
    with pytest.raises(ValueError, match="the cause"):
        train(tmp_path, listeners=(broken, Failing()))
    assert broken.finished == 1


def test_a_run_is_resumed_from_its_last_commit(tmp_path):
    class Stop(Requests):
        steps = 0

        def save(self):
            self.steps += 1
            return False

        def stop(self):
            return self.steps >= 3

    straight, _, _ = train(tmp_path / "straight")
    _, outcome, _ = train(tmp_path / "broken", requests=Stop())
    assert (outcome.images, outcome.finished) == (3 * BATCH, False)
    resumed, outcome, _ = train(tmp_path / "broken")
    assert outcome.finished
    assert torch.equal(straight.model.w, resumed.model.w)
    rows = [row["images"] for row in read_metrics(Checkpointer(str(tmp_path / "broken"), CheckpointConfig()).run)]
    assert rows == [n * BATCH for n in range(1, 11)]


@pytest.mark.parametrize(
    ("every", "before", "now", "expected"),
    [(10, 0, 4, False), (10, 8, 12, True), (10, 10, 14, False), (10, 36, 40, True), (1000, 36, 40, True)],
)
def test_what_is_due_at_a_multiple_or_at_the_end_of_the_budget(every, before, now, expected):
    assert due(every, before, now, budget=40) is expected
