"""The best evaluation of a run: told, its weights kept and found again, and the end of training after it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import trainer
import trainer.training.loop
from cluster.storage.storage import Storage
from jobs.config.loading import load_config
from jobs.errors import ConfigError
from jobs.evaluate import main as evaluate
from jobs.export import main as export
from jobs.run.training import train_rank
from jobs.sample import main as sample
from tests.jobs.conftest import BATCH
from tests.jobs.images import write_images
from tests.jobs.runs import evaluation_rows, newest_tensors
from tests.testbed.ranks import together
from tests.testbed.steps import StopAfter, train
from trainer.checkpoints.export import open_model
from trainer.checkpoints.lineage import Lineage
from trainer.errors import TrainingError

EVERY = {"evaluate_every": 2 * BATCH, "checkpoint_every": 7 * BATCH, "log_every": 2 * BATCH, "pictures": 0}
RISING = [9.0, 3.0, 8.0, 7.0, 6.0, 5.0, 4.0, 4.0, 4.0, 4.0]  # nats, at every second of 20 steps


@pytest.fixture
def bounds(monkeypatch):
    """Sets the bounds of the evaluations to come."""
    real = trainer.training.loop.evaluate

    def set_to(nats: list[float]) -> None:
        left = iter(nats)
        monkeypatch.setattr(
            trainer.training.loop, "evaluate", lambda *arguments: real(*arguments)._replace(nats=next(left))
        )

    return set_to


def weights(run: str, name: str = "best") -> dict[str, torch.Tensor]:
    return trainer.load(run, name).state_dict()


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert all(torch.equal(one[name], other[name]) for name in one | other)


def averages_after(config_file, name: str, steps: int) -> dict[str, torch.Tensor]:
    """The averaged weights of the same run at a step."""
    config = load_config(str(config_file(name, trainer=EVERY)))
    train_rank(config, StopAfter(steps))
    saved = newest_tensors(config.run)
    return {key.removeprefix("ema/"): value for key, value in saved.items() if key.startswith("ema/")}


def test_the_best_evaluation_is_told_and_its_weights_are_found(config_file, bounds, capsys, tmp_path):
    config = load_config(str(config_file(trainer=EVERY)))
    bounds(RISING)
    outcome = train_rank(config)
    lines = capsys.readouterr().out.splitlines()
    told = [line.split("; ")[-1] for line in lines if "images: validation" in line]
    assert told[:3] == ["best so far", "best so far", "best 3.00 nats after 256 images, risen for 1 evaluation"]
    assert told[-1] == "best 3.00 nats after 256 images, risen for 8 evaluations"
    assert "finished after 1,280 images; validation: best 3.00 nats after 256 images, risen for 8" in lines[-1]
    assert (outcome.best.images, outcome.best.since, outcome.early) == (4 * BATCH, 8, False)

    bounds(RISING)
    wanted = averages_after(config_file, "short", 4)  # the best was evaluated between two checkpoints
    found = open_model(config.run, "best")
    assert (found.weights, found.images) == ("best", 4 * BATCH)
    assert_equal(found.model.state_dict(), wanted)
    assert not all(torch.equal(wanted[name], value) for name, value in weights(config.run, "ema").items())

    evaluate([config.run, "--weights", "best"])
    assert "270 images of validation, best averaged (EMA) weights after 256 images" in capsys.readouterr().out
    assert (Path(config.run) / "evaluations/validation-elbo-1-best-256.json").exists()
    sample([config.run, "--weights", "best", "--count", "2", "--processes", "1", "--out", str(tmp_path / "s")])
    assert "best averaged (EMA) weights after 256 images" in capsys.readouterr().out
    export([config.run, "--weights", "best", "--out", str(tmp_path / "export")])
    assert_equal(weights(str(tmp_path / "export"), "ema"), wanted)
    assert_equal(weights(str(tmp_path / "export")), wanted)

    copied = str(shutil.copytree(Path(config.run) / "final", tmp_path / "copy"))
    assert_equal(weights(copied), wanted)
    assert_equal(weights(copied, "ema"), weights(config.run, "ema"))


def test_the_best_weights_of_an_extended_run(config_file, bounds):
    config = load_config(str(config_file(trainer=EVERY)))
    bounds(RISING)
    train_rank(config)
    bounds([5.0, 2.0, 2.5])
    extended = load_config(str(config_file(trainer=EVERY | {"images": 26 * BATCH})))
    outcome = train_rank(extended)
    assert outcome.best == (24 * BATCH, 2.0, 1)
    assert open_model(config.run, "best").images == 24 * BATCH
    bounds([1.0])
    outcome = train_rank(load_config(str(config_file(trainer=EVERY | {"images": 28 * BATCH}))))
    assert open_model(config.run, "best").images == 28 * BATCH
    assert not (Path(config.run) / "final/best/config.json").exists()


def test_the_best_is_known_after_a_restart(config_file, bounds, capsys):
    config = load_config(str(config_file(trainer=EVERY)))
    bounds(RISING)
    train_rank(config, StopAfter(9))
    assert open_model(config.run, "best").images == 4 * BATCH
    capsys.readouterr()
    bounds(RISING[4:])
    train_rank(config)
    assert "best 3.00 nats after 256 images, risen for 3 evaluations" in capsys.readouterr().out


def test_bounds_on_another_set_are_not_compared(config_file, bounds, digits, capsys):
    config = load_config(str(config_file(trainer=EVERY)))
    bounds(RISING)
    train_rank(config, StopAfter(9))
    bounds([30.0] * 6)
    other = load_config(str(config_file(trainer=EVERY, data={"validation": str(digits / "train")})))
    outcome = train_rank(other)
    assert outcome.best == (10 * BATCH, 30.0, 5)
    assert open_model(config.run, "best").images == 10 * BATCH


def test_weights_that_were_not_kept_are_named(config_file, bounds):
    none_kept = EVERY | {"checkpoints": {"keep_best": 0}}
    config = load_config(str(config_file(trainer=none_kept)))
    bounds(RISING)
    train_rank(config)
    with pytest.raises(TrainingError, match=r"best evaluation \(3.00 nats after 256 images\) were not kept"):
        trainer.load(config.run, "best")
    blind = load_config(str(config_file("blind", data={"validation": ""}, trainer=EVERY)))
    train_rank(blind)
    with pytest.raises(TrainingError, match="no best weights: nothing was evaluated"):
        trainer.load(blind.run, "best")


def test_an_evaluation_that_is_not_finite_is_never_the_best(config_file, bounds):
    config = load_config(str(config_file(trainer=EVERY)))
    bounds([float("nan"), 5.0, float("inf"), *[6.0] * 7])
    assert train_rank(config).best == (4 * BATCH, 5.0, 8)


def test_training_ends_when_patience_has_run_out_and_continues_with_more(config_file, bounds, capsys):
    config = load_config(str(config_file(trainer=EVERY | {"patience": 3})))
    bounds(RISING)
    outcome = train_rank(config)
    assert (outcome.images, outcome.finished, outcome.early) == (10 * BATCH, True, True)
    said = capsys.readouterr().out
    assert "finished after 640 images of 1,280: trainer.patience is 3; a larger one continues; validation: best" in said
    assert next(Lineage(Storage(config.run)).history()).images == 10 * BATCH
    assert json.loads((Path(config.run) / "final/config.json").read_text())["images_seen"] == 10 * BATCH
    assert json.loads((Path(config.run) / "final/best/config.json").read_text())["images_seen"] == 4 * BATCH

    before = {entry.path: entry.etag for entry in Storage(config.run).list()}
    assert train_rank(config).early
    assert "is finished: 640 images seen of 1,280: trainer.patience is 3" in capsys.readouterr().out
    assert {entry.path: entry.etag for entry in Storage(config.run).list()} == before

    bounds(RISING[5:])
    more = load_config(str(config_file(trainer=EVERY | {"patience": 5})))
    assert train_rank(more).images == 14 * BATCH
    bounds(RISING[7:])
    unlimited = load_config(str(config_file(trainer=EVERY)))
    outcome = train_rank(unlimited)
    assert (outcome.images, outcome.early) == (20 * BATCH, False)
    assert [row["images"] for row in evaluation_rows(config.run)] == [2 * BATCH * n for n in range(1, 11)]


def test_patience_needs_evaluations(config_file):
    with pytest.raises(ConfigError, match=r"trainer\.patience: counts evaluations; set data\.validation"):
        load_config(str(config_file(data={"validation": ""}, trainer={"patience": 1})))


def test_two_ranks_keep_the_best_and_stop_together(config_file, tmp_path):
    """The bounds of random images rise while the model learns digits."""
    data = {"validation": str(write_images(tmp_path / "noise", levels=17))}
    alone, two = (config_file(name, trainer=EVERY | {"patience": 2}, data=data) for name in ("alone", "two"))
    train(alone)
    together(2, train, two)
    runs = [load_config(str(path)).run for path in (alone, two)]
    rows = [[row["images"] for row in evaluation_rows(run)] for run in runs]
    assert rows[0] == rows[1]
    assert rows[0][-1] < 20 * BATCH
    assert open_model(runs[0], "best").images == open_model(runs[1], "best").images
