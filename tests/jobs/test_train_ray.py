"""The same run by Ray Train: two workers on a Ray of this machine's own."""

from __future__ import annotations

import signal

import pytest

from cluster.storage import Storage
from jobs.config import load_config
from jobs.worker import work
from tests.jobs.conftest import BATCH
from tests.jobs.runs import metrics, newest_tensors
from tests.testbed.jobs import Job, run_job
from tests.testbed.ranks import torchrun
from trainer.lineage import Lineage

RAY_SECONDS = 240.0

pytestmark = pytest.mark.ray


def test_ray_stops_on_request_and_another_launcher_goes_on(config_file):
    """SIGTERM to the driver: the ranks commit and leave; a plain process ends the run."""
    path = config_file(trainer={"images": 40_000_000, "evaluate_every": 40_000_000, "log_every": 640})
    run = load_config(str(path)).run
    with Job("train", str(path), "ray.workers=2") as job:
        job.wait_for("images/s", timeout=RAY_SECONDS)
        job.signal(signal.SIGTERM)
        ended = job.wait(timeout=RAY_SECONDS)
    assert ended.status == 0, ended.stderr
    images = next(Lineage(Storage(run)).history()).images
    assert f"stopped after {images:,} images, committed" in ended.stdout + ended.stderr

    assert work(load_config(str(path), [f"trainer.images={images + 4 * BATCH}"])).finished
    assert metrics(run)[-1]["images"] == images + 4 * BATCH


def test_two_ray_workers_compute_what_two_local_ranks_do(config_file):
    by_ray, by_torchrun = config_file("ray"), config_file("torchrun")
    ended = run_job("train", str(by_ray), "ray.workers=2", timeout=RAY_SECONDS)
    assert ended.status == 0, ended.stderr
    torchrun(2, "jobs.train_local", by_torchrun)
    runs = [load_config(str(path)).run for path in (by_ray, by_torchrun)]
    mine, theirs = (newest_tensors(run) for run in runs)
    assert mine.keys() == theirs.keys()
    different = [name for name in mine if not mine[name].equal(theirs[name])]
    assert not different
    for ours, other in zip(metrics(runs[0]), metrics(runs[1]), strict=True):
        assert ours == pytest.approx(other, rel=1e-12)

    again = run_job("train", str(by_ray), "ray.workers=2", timeout=RAY_SECONDS)
    assert again.status == 0, again.stderr
    assert "is finished" in again.stdout + again.stderr


def test_what_a_person_must_mend_is_told_at_once_and_in_one_line(config_file, tmp_path):
    """Found by the ranks, said by the driver, not tried again."""
    path = config_file(data={"shards": str(tmp_path / "nowhere")})
    ended = run_job("train", str(path), "ray.workers=2", timeout=RAY_SECONDS)
    assert ended.status == 1
    assert ended.error.startswith("error: ")
    assert str(tmp_path / "nowhere") in ended.error
