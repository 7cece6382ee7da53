"""Clipping that acts on every gradient, or on none, is named once; so is a warm start without a warm-up."""

from __future__ import annotations

import pytest
import torch

from jobs.config.loading import load_config
from jobs.config.resolved import resolve
from jobs.config.resume import check_resume, fingerprint
from jobs.run.training import train_rank
from tests.jobs.conftest import BATCH
from tests.testbed.steps import StopAfter
from trainer.training.guard import Guard, GuardConfig
from trainer.training.optimizer import OptimConfig, adamw

LONG = {"images": 120 * BATCH, "evaluate_every": 120 * BATCH, "log_every": 10 * BATCH, "checkpoint_every": 120 * BATCH}


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        (1.0, "optim.clip: all of 100 gradients were clipped to 1, their norm is about "),
        (1e6, "optim.clip: none of 120 gradients reached 1e+06; the largest norm was "),
        (None, None),
    ],
)
def test_a_limit_that_acts_always_or_never_is_named_once(config_file, capsys, clip, message):
    train_rank(load_config(str(config_file(optim={"clip": clip}, trainer=LONG))))
    said = capsys.readouterr().out
    assert said.count("optim.clip") == (message is not None)
    assert message is None or message in said


def test_a_limit_that_acts_on_some_gradients_is_not_remarked_on(config_file, capsys):
    """The largest norm of this run is 33.6, at its beginning."""
    train_rank(load_config(str(config_file(optim={"clip": 25.0}, trainer=LONG))))
    assert "optim.clip" not in capsys.readouterr().out


def test_the_norm_is_the_same_without_clipping():
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    norms = []
    for clip in (None, 1e9):
        model.zero_grad()
        model(torch.ones(4, 3)).square().sum().backward()
        guard = Guard(GuardConfig(), torch.device("cpu"))
        norms.append(guard.step(adamw(model, OptimConfig(lr=1e-30)), list(model.parameters()), clip))
    torch.testing.assert_close(norms[0], norms[1])
    assert norms[0] > 0


def test_a_run_of_a_version_with_another_default_continues_and_says_what_changes(config_file):
    run = resolve(load_config(str(config_file())))
    saved = fingerprint(run)
    saved["changeable"].pop("optim.clip")
    saved["config"]["optim.clip"] = 1000.0
    assert check_resume(run, saved, BATCH) == ["optim.clip changes from 1000.0 to None"]


def test_a_warm_start_without_a_warm_up_is_named(config_file, capsys):
    first = load_config(str(config_file("first")))
    train_rank(first)
    capsys.readouterr()
    line = "warning: optim.warmup is 0, so the first steps from these weights take the full learning rate of 0.002"
    second = load_config(str(config_file("second", init_from=first.run)))
    train_rank(second, StopAfter(2))
    assert line in capsys.readouterr().out
    train_rank(second)
    assert line not in capsys.readouterr().out  # resumed
    train_rank(load_config(str(config_file("third", init_from=first.run, optim={"warmup": 100}))), StopAfter(2))
    assert line not in capsys.readouterr().out
