"""An outage of W&B stops no run and loses no row: the same command, started again, sends missing rows."""

from __future__ import annotations

import pytest
import wandb

import trainer.tracking.wandb_run
from cluster.storage.storage import Storage
from jobs.config.loading import load_config
from jobs.run.training import train_rank
from tests.jobs.runs import metrics
from tests.testbed.steps import StopAfter
from trainer.distributed.requests import Requests
from trainer.tracking.trackers import lacks_rows


@pytest.fixture(autouse=True)
def impatient(wandb_server, monkeypatch):
    """Short time limits for W&B; its service in this process ends with the test."""
    for name, value in wandb_server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(trainer.tracking.wandb_run, "INIT_SECONDS", 4.0)
    monkeypatch.setattr(trainer.tracking.wandb_run, "FINISH_SECONDS", 6.0)
    yield
    wandb.teardown()


def same(server, run: str) -> bool:
    """Whether W&B has the rows of the lineage, each once."""
    rows, wanted = server.rows(Storage(run).read("wandb-id").decode()), metrics(run)
    losses = [
        [(row["images"], row.get("train/nats"), row.get("validation/nats")) for row in each] for each in (rows, wanted)
    ]
    return losses[0] == losses[1] and len(wanted) > 0


@pytest.mark.parametrize("steps", [7, None], ids=["until a stop", "until after the end"])
def test_a_run_that_starts_while_the_server_is_down_loses_no_row(config_file, wandb_server, capsys, steps):
    config = load_config(str(config_file(tracking={"mode": "online"})))
    wandb_server.failing = 503
    outcome = train_rank(config, StopAfter(steps) if steps else Requests())
    assert outcome.finished == (steps is None)
    assert wandb_server.refused > 0
    assert "W&B fails (" in capsys.readouterr().out
    assert lacks_rows(Storage(config.run))

    wandb_server.failing = None
    assert train_rank(config).finished
    assert same(wandb_server, config.run)
    assert not lacks_rows(Storage(config.run))
    wandb_server.failing = 503  # no request is made any more
    refused = wandb_server.refused
    assert train_rank(config).finished
    assert wandb_server.refused == refused


def test_rows_missed_by_a_server_that_went_down_are_sent_on_resume(config_file, wandb_server, capsys):
    config = load_config(str(config_file(tracking={"mode": "online"})))

    class StopInAnOutage(StopAfter):
        def stop(self) -> bool:
            if self.left == 5:
                wandb_server.failing = 503
            return super().stop()

    assert not train_rank(config, StopInAnOutage(9)).finished
    assert lacks_rows(Storage(config.run))
    assert "W&B lacks rows of this run" in capsys.readouterr().out
    wandb_server.failing = None
    assert train_rank(config).finished
    assert same(wandb_server, config.run)
