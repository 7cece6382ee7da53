"""The local multi-host cluster, and the daily road on it: look, submit, follow, stop, go on, lose a host, end."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from cluster.local import hosts as local
from cluster.local import namespaces
from cluster.storage.storage import Storage
from tests.testbed.jobs import Job, run_job
from tests.testbed.processes import REPOSITORY, wait_until
from trainer.checkpoints.commit import Commit
from trainer.checkpoints.lineage import Lineage

HOSTS = 3
PATIENCE = 300.0  # seconds for what a busy machine takes long to do
CONFIG = str(REPOSITORY / "jobs" / "configs" / "digits-vae.yaml")


# ---- without a cluster


def command(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cluster.local", "--folder", str(folder), *words],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("words", [["env"], ["drain", "1"], ["cut", "1"], ["start", "1"]])
def test_without_a_cluster_the_commands_say_so(words: list[str], tmp_path: Path) -> None:
    told = command(*words, folder=tmp_path / "none")
    assert told.returncode == 1
    assert told.stderr == f"error: {tmp_path}/none: no cluster is running; start one with: python -m cluster.local up\n"


def test_a_second_cluster_is_refused(tmp_path: Path) -> None:
    told = command("up", folder=tmp_path)
    assert told.returncode == 1
    assert "a cluster is already running" in told.stderr


def test_a_number_of_hosts_that_cannot_be_is_refused_and_nothing_is_made(tmp_path: Path) -> None:
    with pytest.raises(namespaces.LocalClusterError, match="must be 1 to 200"):
        local.up(tmp_path / "cluster", 0, 1)
    assert not (tmp_path / "cluster").exists()


def test_down_ends_every_process_of_the_cluster_and_no_other(tmp_path: Path) -> None:
    folder = tmp_path / "cluster"
    folder.mkdir()
    mute = (
        f"import subprocess, time; subprocess.Popen({[sys.executable, '-c', 'import time; time.sleep(600)']}, env={{}})"
    )
    sleep = [sys.executable, "-c", f"{mute}; time.sleep(600)"]  # with a child that has lost the mark
    own, other = (
        subprocess.Popen(sleep, env={**os.environ, local.MARK: str(value)}) for value in (folder, f"{folder}-2")
    )
    try:
        wait_until(lambda: len(local._processes(folder)) == 2, 10, "the process with its environment, and its child")
        assert own.pid in local._processes(folder)
        (child,) = (number for number in local._processes(folder) if number != own.pid)
        local._end_processes(folder)
        assert own.wait(5) == -9
        assert local._words(child, "cmdline") in ([], [""])
        assert other.poll() is None
    finally:
        local._end_processes(Path(f"{folder}-2"))
        own.kill()
        other.kill()
        own.wait()
        other.wait()


# ---- with one


@pytest.fixture(scope="module")
def cluster(only_ray: None) -> Iterator[local.Cluster]:
    """Three hosts in network namespaces."""
    if not namespaces.available():
        pytest.skip("network namespaces cannot be had here")
    if namespaces.left():
        pytest.skip("a local cluster is up on this machine already")
    folder = Path("/tmp/lb-test")  # short: Ray's sockets lie below it
    yield local.up(folder, HOSTS, cpus=1)
    local.down(folder)
    assert not folder.exists()
    assert namespaces.left() == []
    assert list(local._processes(folder)) == []


@pytest.fixture
def client(cluster: local.Cluster) -> Mapping[str, str]:
    return cluster.client_environment


def newest(run: Path) -> Commit:
    return next(iter(Lineage(Storage(str(run))).history()), Commit(0, 0))


@pytest.mark.slow
@pytest.mark.ray
def test_a_wrong_token_is_refused(client: Mapping[str, str], tmp_path: Path) -> None:
    (tmp_path / "token").write_text("0" * 64)
    told = run_job("submit", "--list", env={**client, "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}, timeout=PATIENCE)
    assert told.status == 1
    assert told.error.endswith("rejects the token in RAY_AUTH_TOKEN_PATH")
    told = run_job("submit", "--list", env={**client, "RAY_AUTH_MODE": "disabled"}, timeout=PATIENCE)
    assert told.status == 1
    assert "requires a token" in told.error


@pytest.mark.slow
@pytest.mark.ray
def test_the_doctor_finds_every_host_well(client: Mapping[str, str], cluster: local.Cluster) -> None:
    told = run_job("doctor", "--address", cluster.address, env=client, timeout=PATIENCE)
    assert told.status == 0, told.stdout
    assert f"{HOSTS} machines" in told.stdout


@pytest.mark.slow
@pytest.mark.ray
def test_a_run_is_submitted_followed_stopped_continued_and_loses_a_host(
    client: Mapping[str, str], cluster: local.Cluster, tmp_path: Path
) -> None:
    from datasets.packing.pack import pack
    from datasets.packing.sources.digits import Digits

    pack(Digits(), str(tmp_path / "digits"))
    run = tmp_path / "run"
    settings = [
        f"run={run}",
        f"data.shards={tmp_path}/digits/train",
        f"data.validation={tmp_path}/digits/validation",
        "tracking.mode=off",
        "trainer.images=4000000000",
        "trainer.evaluate_every=4000000000",
        "trainer.log_every=100000",
        "trainer.checkpoint_every=200000",
    ]
    secret = {"WANDB_API_KEY": "never-to-be-seen"}

    # jobs.submit, followed; stopped by another process: the commit is there before the job has ended
    with Job("submit", CONFIG, *settings, "--workers=1-3", "--name=first", "--follow", env={**client, **secret}) as job:
        job.wait_for("images/s", PATIENCE)
        again = run_job("submit", CONFIG, *settings, env=client, timeout=PATIENCE)
        assert "job first is training this run; stop it first" in again.error
        stopped = run_job("submit", "--stop", "first", env=client, timeout=PATIENCE)
        assert stopped.status == 0
        first = newest(run)
        assert f"first: stopped; newest commit after {first.images:,} images" in stopped.stdout
        followed = job.wait(PATIENCE)
    assert followed.status == 0
    assert f"stopped and committed after {first.images:,} images" in followed.stdout
    assert "never-to-be-seen" not in followed.stdout + followed.stderr

    # plain `ray job submit` resumes from there
    ray = [shutil.which("ray", path=Path(sys.executable).parent) or "ray", "job"]
    environment = {**os.environ, **client}
    train = ["python", "-m", "jobs.train", CONFIG, *settings, "ray.workers=[1,3]"]
    subprocess.run(
        [*ray, "submit", "--no-wait", "--submission-id=second", "--working-dir=.", "--", *train],
        cwd=REPOSITORY, env=environment, check=True, capture_output=True,
    )  # fmt: skip
    with Job("submit", "--logs", "second", "--follow", env=client) as job:
        job.wait_for(f"resuming after {first.images:,} images", PATIENCE)
        wait_until(lambda: newest(run).images > first.images, PATIENCE, "a commit of the second job")

        # a host is taken away with a notice; the run goes on with the others
        local.drain(cluster, HOSTS - 1)
        job.wait_for(f"worker group of size {HOSTS - 1}", PATIENCE)
        drained = newest(run)
        wait_until(lambda: newest(run).attempt > drained.attempt, PATIENCE, "a commit after the loss of a host")
        subprocess.run([*ray, "stop", "second"], env=environment, check=True, capture_output=True, timeout=PATIENCE)
        job.wait(PATIENCE)
    assert newest(run).images > drained.images
    assert "the same command resumes the run" in job_log("second", client)


def job_log(job: str, client: Mapping[str, str]) -> str:
    return run_job("submit", "--logs", job, env=client, timeout=PATIENCE).stdout
