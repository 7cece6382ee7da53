"""The commit with the lowest bound on the held-out set is kept, though it is made before it is evaluated."""

from __future__ import annotations

import trainer.training.loop
from cluster.storage.storage import Storage
from jobs.config.loading import load_config
from jobs.run.training import train_rank
from tests.jobs.conftest import BATCH
from tests.testbed.steps import StopAfter
from trainer.checkpoints.lineage import Lineage

BOUNDS = [9.0, 3.0, 8.0, 7.0, 6.0, 5.0, 4.0, 4.0, 4.0, 4.0]  # nats, at every second step


def test_the_best_commit_is_kept_over_a_restart(config_file, monkeypatch):
    every = {"evaluate_every": 2 * BATCH, "checkpoint_every": 2 * BATCH, "log_every": 2 * BATCH, "pictures": 0}
    config = load_config(str(config_file(trainer=every)))
    real, bounds = trainer.training.loop.evaluate, iter(BOUNDS)
    monkeypatch.setattr(
        trainer.training.loop, "evaluate", lambda *arguments: real(*arguments)._replace(nats=next(bounds))
    )
    start = trainer.training.loop.start_commit

    def start_and_wait(state, data, checkpointer, events):
        start(state, data, checkpointer, events)
        checkpointer._writing.join()  # so that the speed of the disk does not decide which commits there are

    monkeypatch.setattr(trainer.training.loop, "start_commit", start_and_wait)
    train_rank(config, StopAfter(13))
    train_rank(config)
    kept = [commit.images for commit in Lineage(Storage(config.run)).history()]
    assert kept == [20 * BATCH, 18 * BATCH, 13 * BATCH, 4 * BATCH]  # the newest two, where it was resumed, the best
