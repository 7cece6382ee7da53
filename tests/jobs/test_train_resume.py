"""A run that stops and goes on is the run that never stopped."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cluster.storage.storage import Storage
from jobs.config.loading import load_config
from jobs.config.resolved import resolve
from jobs.config.resume import ORDER_VERSION, fingerprint
from jobs.run import training
from jobs.run.training import train_rank
from tests.jobs.conftest import BATCH
from tests.jobs.runs import assert_bitwise_equal, metrics, newest_tensors, training_rows
from tests.testbed.ranks import together
from tests.testbed.steps import StopAfter, train
from trainer.checkpoints.lineage import Lineage
from trainer.checkpoints.reading import SavedState


@pytest.mark.parametrize("steps", [1, 10, 13])
def test_a_stopped_run_goes_on_bitwise(config_file, steps):
    straight, broken = load_config(str(config_file("straight"))), load_config(str(config_file("broken")))
    assert train_rank(straight).finished

    stopped = train_rank(broken, requests=StopAfter(steps))
    assert (stopped.images, stopped.finished) == (steps * BATCH, False)
    assert train_rank(broken).finished

    assert_bitwise_equal(newest_tensors(straight.run), newest_tensors(broken.run))
    assert metrics(straight.run) == metrics(broken.run)
    assert [row["images"] for row in training_rows(broken.run)] == [2 * BATCH * n for n in range(1, 11)]


def newest_fingerprint(run):
    lineage = Lineage(Storage(run))
    return SavedState(lineage.folder(next(lineage.history()))).sections["fingerprint"]


@pytest.fixture
def version_1(monkeypatch):
    """Runs are started as before the order had versions."""

    def old_fingerprint(run):
        found = fingerprint(run)
        return found | {"config": {key: value for key, value in found["config"].items() if key != ORDER_VERSION}}

    with monkeypatch.context() as patch:
        patch.setattr(training, "resolve", lambda config: replace(resolve(config), order_version=1))
        patch.setattr(training, "fingerprint", old_fingerprint)
        yield patch


def test_a_run_of_an_older_release_continues_with_its_own_order(config_file, version_1, capsys):
    straight, broken, new = (load_config(str(config_file(name))) for name in ("straight", "broken", "new"))
    train_rank(straight)
    train_rank(broken, requests=StopAfter(10))
    version_1.undo()
    assert "warning: the time of an image" not in capsys.readouterr().out  # 1,280 images are less than an epoch
    train_rank(broken)
    train_rank(new)
    assert_bitwise_equal(newest_tensors(straight.run), newest_tensors(broken.run))
    versions = [newest_fingerprint(config.run)["config"][ORDER_VERSION] for config in (broken, new)]
    assert versions == [1, 2]
    assert metrics(new.run) != metrics(straight.run)


def test_an_order_that_remembers_epochs_is_named_once_at_the_start(config_file, version_1, capsys):
    run = load_config(str(config_file(data={"streams": 1}, trainer={"images": 30 * BATCH})))
    train_rank(run)
    said = capsys.readouterr().out
    assert said.count("warning: the time of an image in an epoch correlates by ") == 1
    assert "shards, and the run was started with an order that permutes whole shards; a new run, also one from" in said


def test_work_after_the_last_commit_is_done_again(config_file):
    """A process that dies loses what came after its last commit; the next one computes the same again."""
    straight, killed = load_config(str(config_file("straight"))), load_config(str(config_file("killed")))
    train_rank(straight)

    class KilledError(Exception):
        pass

    class Death(StopAfter):
        def stop(self) -> bool:
            if super().stop():
                raise KilledError
            return False

    with pytest.raises(KilledError):
        train_rank(killed, requests=Death(14))
    assert next(Lineage(Storage(killed.run)).history()).images == 10 * BATCH  # of its first, so best, evaluation
    assert train_rank(killed).finished
    assert_bitwise_equal(newest_tensors(straight.run), newest_tensors(killed.run))
    assert metrics(straight.run) == metrics(killed.run)


def test_two_ranks_go_on_bitwise(config_file):
    """Also the loss of every step, the first one after the stop among them: each has a row of its own."""
    straight, broken = (config_file(name, trainer={"log_every": BATCH}) for name in ("straight", "broken"))
    together(2, train, straight)
    together(2, train, broken, 7)
    together(2, train, broken)
    runs = [load_config(str(path)).run for path in (straight, broken)]
    assert_bitwise_equal(newest_tensors(runs[0]), newest_tensors(runs[1]))
    mine, other = (training_rows(run) for run in runs)
    assert [row["images"] for row in mine] == [BATCH * n for n in range(1, 21)]
    losses = [(row["train/nats"], row["train/gradient_norm"]) for row in mine]
    assert losses[7:] == [(row["train/nats"], row["train/gradient_norm"]) for row in other][7:]
    assert mine == other
    assert metrics(runs[0]) == metrics(runs[1])


def test_a_run_begun_by_two_ranks_is_ended_by_one(config_file):
    """The same images and noise: what differs is the order in which floats are added."""
    alone, handed_over = config_file("alone"), config_file("handed-over")
    train_rank(load_config(str(alone)))
    together(2, train, handed_over, 7)
    train_rank(load_config(str(handed_over)))
    runs = [load_config(str(path)).run for path in (alone, handed_over)]
    for mine, other in zip(metrics(runs[0]), metrics(runs[1]), strict=True):
        assert mine.pop("validation/precision", None) == other.pop("validation/precision", None)
        assert mine == pytest.approx(other, rel=2e-4)
    theirs = newest_tensors(runs[1])
    for name, value in newest_tensors(runs[0]).items():
        torch.testing.assert_close(value, theirs[name], rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize(("streams", "micro_batch"), [(4, None), (3, None), (3, 5)])
def test_two_ranks_have_the_gradient_of_one(config_file, streams, micro_batch):
    """Also where the shares are uneven (3 streams) and where they are cut into padded micro-batches."""
    trainer = {"images": 48, "batch": 48, "checkpoint_every": 48, "micro_batch": micro_batch}
    one, two = (config_file(name, data={"streams": streams}, trainer=trainer) for name in ("one", "two"))
    train_rank(load_config(str(one)))
    together(2, train, two)
    mine, theirs = (newest_tensors(load_config(str(path)).run) for path in (one, two))
    first_moments = [name for name in mine if name.endswith(".exp_avg")]  # a tenth of the gradient after one step
    assert first_moments
    for name in first_moments:
        assert mine[name].abs().max() > 0
        torch.testing.assert_close(mine[name], theirs[name], rtol=1e-4, atol=1e-5 * mine[name].abs().max().item())
