"""Averages whose width is chosen after training, from the run's snapshots to every command that takes weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import trainer
from cluster.storage.storage import Storage
from jobs import evaluate, export, sample
from jobs.config.loading import load_config
from jobs.run.training import train_rank
from tests.jobs.conftest import BATCH
from tests.jobs.runs import assert_bitwise_equal, newest_tensors
from tests.testbed.steps import StopAfter
from trainer.checkpoints.snapshots import reconstruct, stored_snapshots
from trainer.errors import TrainingError


@pytest.fixture
def run(config_file) -> str:
    """A finished run with snapshots at each fifth of it."""
    config = load_config(str(config_file("straight", optim={"posthoc": 4 * BATCH})))
    train_rank(config)
    return config.run


def test_a_run_that_was_stopped_stores_the_same_averages(run, config_file):
    config = load_config(str(config_file("broken", optim={"posthoc": 4 * BATCH})))
    for steps in (3, 10, 100):  # between two snapshots, then at the step of a later one
        train_rank(config, requests=StopAfter(steps))
    assert_bitwise_equal(newest_tensors(config.run), newest_tensors(run))
    straight, broken = (stored_snapshots(Storage(url)) for url in (run, config.run))
    assert sorted(straight.values()) == sorted(broken.values())
    assert {snapshot.images // BATCH for snapshot in straight.values()} == {4, 8, 12, 16, 20}
    assert_bitwise_equal(*(reconstruct(Storage(url), 0.12).tensors for url in (run, config.run)))


def test_every_command_takes_them(run, tmp_path, capsys):
    assert evaluate.main([run, "--weights", "posthoc:0.08"]) == 0
    report = json.loads((Path(run) / "evaluations/validation-elbo-1-posthoc-0.08-1280.json").read_text())
    assert report["weights"] == "posthoc:0.08"
    assert "averaged (post hoc, relative width 0.08) weights" in capsys.readouterr().out

    sample.main([run, "--count", "2", "--weights", "posthoc:0.08", "--out", f"{tmp_path}/samples"])
    assert (tmp_path / "samples/grid.png").exists()

    export.main([run, "--weights", "posthoc:0.08", "--out", f"{tmp_path}/exported"])
    assert "Weights: averaged (post hoc, relative width 0.08)" in (tmp_path / "exported/README.md").read_text()
    expected = reconstruct(Storage(run), 0.08).tensors
    for name, value in trainer.load(f"{tmp_path}/exported").named_parameters():
        torch.testing.assert_close(value.detach(), expected[name], rtol=0, atol=0)


def test_invalid_options_are_errors_of_one_line(run, config_file, tmp_path):
    for weights in ("posthoc:0.3", "posthoc:", "worst", "ema:0.1"):
        with pytest.raises(TrainingError, match=f"weights {weights}: are ema, best, raw, or posthoc:WIDTH"):
            evaluate.main([run, "--weights", weights])
    without = load_config(str(config_file("without")))
    train_rank(without)
    with pytest.raises(TrainingError, match=r"no snapshots of averages; a run with optim\.posthoc stores them"):
        sample.main([without.run, "--weights", "posthoc:0.1", "--out", str(tmp_path / "out")])
