"""A request to stop is answered by a commit, whatever the run is doing; what it interrupted is made on resume."""

from __future__ import annotations

import gc
import json
import signal
import time
from pathlib import Path

import pytest
import torch

import trainer.training.loop
from cluster.storage.storage import Storage
from jobs.config.loading import load_config
from jobs.run.training import train_rank
from tests.jobs.conftest import BATCH
from tests.jobs.runs import assert_bitwise_equal, evaluation_rows, metrics, newest_tensors
from tests.testbed.jobs import Job
from tests.testbed.ranks import together
from tests.testbed.steps import StopAfter, train
from trainer.checkpoints.commit import Commit
from trainer.checkpoints.lineage import Lineage
from trainer.checkpoints.reading import SavedState
from trainer.distributed.interruption import interruption_point
from trainer.distributed.requests import Requests
from trainer.models.vae import Vae
from trainer.training.ema import Ema

EVALUATED = 10 * BATCH  # images at the first evaluation


class StopIn(Requests):
    """Requests a stop once the process is inside an evaluation or a picture, and counts how far it came after that."""

    def __init__(self, what: str, monkeypatch: pytest.MonkeyPatch):
        self.inside, self.steps_after = False, 0
        real = getattr(trainer.training.loop, what)

        def watched(*arguments, **options):
            self.inside = True
            return real(*arguments, **options)

        monkeypatch.setattr(trainer.training.loop, what, watched)

    def stop(self) -> bool:
        return self.inside

    def save(self) -> bool:
        self.steps_after += self.inside
        return False


def slow_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples with many interruption points, which nobody could wait for."""

    def sample(self, noise, condition=None, temperature=1.0, decode="sample"):
        for _ in range(100_000):
            time.sleep(0.01)
            interruption_point()

    monkeypatch.setattr(Vae, "sample", sample)


def newest(run: str) -> Commit:
    return next(Lineage(Storage(run)).history())


@pytest.mark.parametrize("what", ["evaluate", "draw"])
def test_a_stop_interrupts_evaluation_and_pictures_and_they_are_made_on_resume(config_file, monkeypatch, what):
    sections = {"trainer": {"micro_batch": 16}}  # several batches in an evaluation
    straight = load_config(str(config_file("straight", **sections)))
    broken = load_config(str(config_file("broken", **sections)))
    train_rank(straight)
    with monkeypatch.context() as patch:
        requests = StopIn(what, patch)
        if what == "draw":
            slow_pictures(patch)
        outcome = train_rank(broken, requests)
    assert outcome.images == EVALUATED
    assert not outcome.finished
    assert requests.steps_after == 0
    assert newest(broken.run).images == EVALUATED
    assert evaluation_rows(broken.run) == []
    progress = SavedState(Lineage(Storage(broken.run)).folder(newest(broken.run)), ("progress",)).sections["progress"]
    assert progress["evaluation_owed"]
    assert train_rank(broken).finished
    assert metrics(broken.run) == metrics(straight.run)
    assert_bitwise_equal(newest_tensors(straight.run), newest_tensors(broken.run))
    assert (Path(broken.run) / f"pictures/samples-{EVALUATED:012d}.png").exists()


def test_a_stop_after_the_last_step_leaves_the_last_evaluation_to_the_next_process(config_file):
    straight, broken = load_config(str(config_file("straight"))), load_config(str(config_file("broken")))
    train_rank(straight)
    outcome = train_rank(broken, StopAfter(20))
    assert (outcome.images, outcome.finished) == (2 * EVALUATED, False)
    assert [row["images"] for row in evaluation_rows(broken.run)] == [EVALUATED]
    assert train_rank(broken).finished
    assert metrics(broken.run) == metrics(straight.run)


def interrupted_on_a_rank(path: str, rank: int, what: str) -> None:
    """A rank whose `rank` alone is asked to stop, in the middle of an evaluation or of pictures."""
    import torch.distributed as dist

    with pytest.MonkeyPatch.context() as patch:
        if what == "draw":
            slow_pictures(patch)
        requests = StopIn(what, patch)

        class OfOneRank(Requests):
            def stop(self) -> bool:
                # `draw` runs on rank 0 only: elsewhere the request comes while the rank waits for it
                inside = requests.inside or (what == "draw" and newest_exists(path))
                return dist.get_rank() == rank and inside

        outcome = train_rank(load_config(path), OfOneRank())
    assert (outcome.images, outcome.finished) == (EVALUATED, False)


def newest_exists(path: str) -> bool:
    """Whether the commit before the first evaluation is there."""
    commits = Lineage(Storage(load_config(path).run)).commits()
    return any(commit.images == EVALUATED for commit in commits)


@pytest.mark.parametrize(("rank", "what"), [(1, "evaluate"), (0, "draw"), (1, "draw")])
def test_a_request_to_one_rank_interrupts_all(config_file, rank, what):
    every = {"micro_batch": 8, "checkpoint_every": EVALUATED}
    path = config_file(trainer=every)
    together(2, interrupted_on_a_rank, str(path), rank, what)
    run = load_config(str(path)).run
    assert newest(run).images == EVALUATED
    assert evaluation_rows(run) == []
    together(2, train, str(path))
    assert [row["images"] for row in evaluation_rows(run)] == [EVALUATED, 2 * EVALUATED]


def test_the_commit_comes_before_the_evaluation(config_file, monkeypatch):
    """A process that dies in its first evaluation has lost nothing."""
    config = load_config(str(config_file(trainer={"checkpoint_every": EVALUATED})))

    class DeathError(Exception):
        pass

    def die(*arguments, **options):
        raise DeathError

    with monkeypatch.context() as patch:
        patch.setattr(trainer.training.loop, "evaluate", die)
        with pytest.raises(DeathError):
            train_rank(config)
    assert newest(config.run).images == EVALUATED
    assert train_rank(config).finished
    assert [row["images"] for row in evaluation_rows(config.run)] == [EVALUATED, 2 * EVALUATED]


def test_an_evaluation_that_is_stored_is_not_made_again_by_an_extended_run(config_file):
    path = config_file()
    train_rank(load_config(str(path)))
    train_rank(load_config(str(path), [f"trainer.images={30 * BATCH}"]))
    run = load_config(str(path)).run
    assert [row["images"] for row in evaluation_rows(run)] == [n * EVALUATED for n in (1, 2, 3)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_these_signals_request_a_stop(config_file, number):
    path = config_file(trainer={"images": 10**9, "log_every": BATCH, "evaluate_every": 10**9})
    with Job("train_local", str(path)) as job:
        job.wait_for("images/s", 60)
        job.process.send_signal(number)
        ended = job.wait(60)
    assert ended.status == 0, ended.stderr
    assert "the same command resumes the run" in ended.stdout
    assert newest(load_config(str(path)).run).images > 0


def test_a_rollback_frees_the_failed_attempt_before_it_allocates(config_file, monkeypatch):
    """Weights, moments and averages exist once at any time, not twice."""
    guard = {"max_skips": 3}
    config = load_config(
        str(config_file(trainer={"guard": guard, "log_every": BATCH, "images": 30 * BATCH, "checkpoint_every": BATCH}))
    )
    alive: list[int] = []
    create = trainer.training.state.TrainState.create

    def counted(*arguments, **options):
        alive.append(sum(isinstance(each, torch.optim.AdamW | Ema) for each in gc.get_objects()))
        return create(*arguments, **options)

    poisoned = iter([1e30])
    rate = trainer.training.state.learning_rate

    def spoilt(optim, images, budget):
        return (
            next(poisoned, None) or rate(optim, images, budget) if images == 10 * BATCH else rate(optim, images, budget)
        )

    monkeypatch.setattr(trainer.training.state.TrainState, "create", counted)
    monkeypatch.setattr(trainer.training.state, "learning_rate", spoilt)
    before = gc.collect() and sum(isinstance(each, torch.optim.AdamW | Ema) for each in gc.get_objects())
    assert train_rank(config, StopAfter(1 << 60)).finished
    assert len(alive) == 2  # it went back once
    assert alive[1] == alive[0] == before
    assert json.loads((Path(config.run) / "attempts/0002.json").read_text())["facts"]["noise_salt"] == 1
