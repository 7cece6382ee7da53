"""A run that diverges goes back to its last good commit, once; the second time it stops with the reason."""

from __future__ import annotations

import math

import pytest
import torch

import trainer.training.loop
import trainer.training.state
from cluster.storage.storage import Storage
from jobs.config.loading import load_config
from jobs.run.training import train_rank
from tests.jobs.conftest import BATCH
from tests.jobs.runs import newest_tensors, training_rows
from tests.testbed.jobs import fork_job
from tests.testbed.steps import StopAfter
from trainer.checkpoints.checkpointer import Checkpointer
from trainer.checkpoints.commit import Commit
from trainer.checkpoints.lineage import Lineage
from trainer.errors import DivergedError
from trainer.training.optimizer import learning_rate

POISON = 1e30  # a learning rate that ruins the weights in one step


@pytest.fixture(autouse=True)
def prompt_commits(monkeypatch):
    """A commit is written before the next step is taken, so that the pace of the disk does not decide which there are.

    Where one takes longer, the next one waits for it and comes some steps later than asked for.
    """
    start = Checkpointer.start

    def started(self, *state):
        commit = start(self, *state)
        self._writing.join()
        return commit

    monkeypatch.setattr(Checkpointer, "start", started)


@pytest.fixture
def poison(monkeypatch):
    """Makes the learning rate POISON in the step after each of some image counts, as often as that is asked."""

    def spoil(at: dict[int, int]) -> None:
        def spoilt(optim, images, budget):
            if at.get(images, 0) > 0:
                at[images] -= 1
                return POISON
            return learning_rate(optim, images, budget)

        monkeypatch.setattr(trainer.training.state, "learning_rate", spoilt)

    return spoil


@pytest.fixture
def config(config_file):
    """30 steps, a commit every 4, of which step 11 (from 640 images on) can be poisoned."""
    changes = {"images": 30 * BATCH, "checkpoint_every": 4 * BATCH, "log_every": BATCH, "evaluate_every": 30 * BATCH}
    return load_config(str(config_file(trainer=changes | {"guard": {"max_skips": 6}})))


def facts(run: str) -> list[tuple[int, Commit | None, float, int]]:
    attempts = Lineage(Storage(run)).attempts()
    return [
        (number, attempt.start, attempt.facts.get("lr_factor", 1.0), attempt.facts.get("noise_salt", 0))
        for number, attempt in attempts.items()
    ]


@pytest.mark.parametrize("ruined", [10, 11])
def test_it_goes_back_to_the_last_good_commit_with_other_noise_and_half_the_rate(config, poison, capsys, ruined):
    """Poisoned in step 12, ruined weights are committed before any gradient shows it: that commit is passed over."""
    poison({ruined * BATCH: 1})
    assert train_rank(config).finished
    assert facts(config.run) == [(1, None, 1.0, 0), (2, Commit(8 * BATCH, 1), 0.5, 1)]
    reason = Lineage(Storage(config.run)).attempts()[2].facts["rolled_back"]
    assert reason.startswith("diverged: 6 steps in a row")
    assert "going back once, with other noise and 0.5 times the learning rate" in capsys.readouterr().out

    rows = training_rows(config.run)
    assert [row["images"] for row in rows] == [n * BATCH for n in range(1, 31)]  # those of the lineage that counts
    assert all(math.isfinite(row["train/nats"]) for row in rows)
    assert {row["train/skipped"] for row in rows} == {0}
    assert [row["train/lr"] for row in rows] == [0.002] * 8 + [0.001] * 22
    assert all(value.isfinite().all() and value.abs().max() < 1e6 for value in newest_tensors(config.run).values())


def test_the_noise_after_it_is_another_and_the_images_are_the_same(config, config_file, poison, monkeypatch):
    seen: list[tuple[list[int], torch.Tensor]] = []
    noise = trainer.training.loop.Noise

    def noted(seed, purpose, positions, *rest):
        drawn = noise(seed, purpose, positions, *rest)
        if purpose == "train":
            seen.append((positions.tolist(), drawn.normal("z", (2,))))
        return drawn

    monkeypatch.setattr(trainer.training.loop, "Noise", noted)
    poison({10 * BATCH: 1})
    train_rank(config)
    first, again = (each for each in seen if each[0][0] // BATCH == 9)  # step 10, before and after it went back
    assert first[0] == again[0]
    assert not torch.equal(first[1], again[1])


def test_the_second_time_it_stops_with_the_reason_and_so_does_every_process_after_it(config, poison):
    poison({10 * BATCH: 99})
    for started in (8 * BATCH, 8 * BATCH):
        with pytest.raises(DivergedError, match="6 steps in a row"):
            train_rank(config)
        newest = Lineage(Storage(config.run)).attempts()[Lineage(Storage(config.run)).newest_attempt()]
        assert newest.start == Commit(started, 1)
    assert [lr for *_, lr, _ in facts(config.run)] == [1.0, 0.5, 0.5]  # not lowered again


def test_a_process_that_takes_over_keeps_what_the_rollback_changed(config, poison):
    poison({10 * BATCH: 1})
    asked = StopAfter(24)  # 17 before it goes back, 7 after
    assert not train_rank(config, requests=asked).finished
    assert train_rank(config).finished
    assert [(lr, salt) for *_, lr, salt in facts(config.run)] == [(1.0, 0), (0.5, 1), (0.5, 1)]
    assert training_rows(config.run)[-1]["train/lr"] == 0.001


def test_without_a_rollback_it_stops_at_once(config_file, poison):
    guard = {"max_skips": 6, "rollback_lr": None}
    config = load_config(str(config_file(trainer={"guard": guard, "images": 30 * BATCH})))
    poison({10 * BATCH: 1})
    with pytest.raises(DivergedError, match="7 steps in a row"):  # the look comes every second step
        train_rank(config)
    assert len(facts(config.run)) == 1


def test_a_command_with_a_rate_that_is_far_too_high_ends_with_one_line(config_file):
    """Skipped, counted, bounded: never more than the cap in a row, twice, then the reason."""
    path = config_file(optim={"lr": 1e18, "clip": 1e30}, trainer={"guard": {"max_skips": 5}, "images": 400 * BATCH})
    ended = fork_job("train_local", str(path))
    assert ended.status == 1
    assert ended.error.startswith("error: diverged: ")
    assert "lower optim.lr or lengthen optim.warmup" in ended.error
    assert "Traceback" not in ended.stderr
    assert "going back once" in ended.stdout
