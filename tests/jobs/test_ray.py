"""What Ray runs: training and evaluation by two workers, on a Ray of the job's own and on a cluster that is there."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from cluster.local import hosts as local
from cluster.storage.storage import Storage
from datasets.shards.index import Index
from jobs.config.loading import load_config
from jobs.evaluate import main as evaluate
from jobs.ray.metrics import gauge_name
from jobs.run.training import train_rank
from tests.datasets import small_sets
from tests.jobs import captioned
from tests.jobs.captioned import assert_same_run, folder_of, write_config, write_set
from tests.jobs.conftest import BATCH
from tests.jobs.runs import metrics, newest_tensors
from tests.testbed.jobs import Job, run_job
from tests.testbed.processes import REPOSITORY, wait_until
from tests.testbed.ranks import torchrun
from trainer.checkpoints.lineage import Lineage

RAY_SECONDS = 240.0

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("only_ray")]


@pytest.fixture
def short_folder():
    """Ray's sockets lie below it, whose paths must be short."""
    with tempfile.TemporaryDirectory(prefix="lb-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def cluster(only_ray, s3):
    """The variables with which a job finds a Ray that is up already, whose machines can reach a store."""
    above = Path(tempfile.mkdtemp(prefix="lb-", dir="/tmp"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3.environment.items():
            patch.setenv(name, value)
        up = local.up(above / "c", hosts=1, cpus=2, plain=True)
    yield {"RAY_ADDRESS": f"{up.head}:{local.GCS_PORT}", **local.SETTINGS, "RAY_AUTH_TOKEN_PATH": str(up.token)}
    local.down(up.folder)
    shutil.rmtree(above)


def gauges(folder):
    """What a run has at the Prometheus endpoints of the Ray nodes whose sessions lie below a folder."""
    found = {}
    for listed in folder.glob("*/prom_metrics_service_discovery.json"):
        for target in (target for group in json.loads(listed.read_text()) for target in group["targets"]):
            with contextlib.suppress(urllib.error.URLError), urllib.request.urlopen(f"http://{target}") as answer:
                lines = answer.read().decode().splitlines()
                found |= {line.split("{")[0]: line for line in lines if line.startswith("ray_lowerbound_")}
    return found


def test_ray_stops_on_request_and_another_launcher_goes_on(config_file, short_folder):
    """SIGTERM to the driver: the ranks commit and leave; a plain process ends the run. While it trained, its figures
    stood at Ray's Prometheus endpoint.
    """
    path = config_file(trainer={"images": 40_000_000, "evaluate_every": 40_000_000, "log_every": 640})
    run = load_config(str(path)).run
    settings = {"TMPDIR": str(short_folder), "RAY_metrics_report_interval_ms": "500"}
    with Job("train", str(path), "ray.workers=2", env=settings) as job:
        job.wait_for("images/s", timeout=RAY_SECONDS)
        wait_until(lambda: gauges(short_folder), RAY_SECONDS, "the run's figures at Ray's metrics endpoint", pause=1.0)
        shown = gauges(short_folder)
        job.signal(signal.SIGTERM)
        ended = job.wait(timeout=RAY_SECONDS)
    assert ended.status == 0, ended.stderr
    progress = [line for line in ended.stdout.splitlines() if "images/s" in line]
    assert progress
    assert len(progress) == len(set(progress)), "a line of progress stands twice in the log"

    logged = metrics(run)
    assert {gauge_name(name) for name in ("train/bpd", "train/rate/z1", "images_per_second")} <= {
        name.removeprefix("ray_") for name in shown
    }
    bpd = shown["ray_lowerbound_train_bpd"]
    assert 'run="run"' in bpd
    assert float(bpd.rsplit(" ", 1)[1]) in [row.get("train/bpd") for row in logged]

    images = next(Lineage(Storage(run)).history()).images
    assert f"stopped and committed after {images:,} images" in ended.stdout + ended.stderr

    assert train_rank(load_config(str(path), [f"trainer.images={images + 4 * BATCH}"])).finished
    assert metrics(run)[-1]["images"] == images + 4 * BATCH


def test_two_ray_workers_compute_what_two_local_ranks_do(config_file, cluster, s3_environment):
    """The one into a store, the other into a folder."""
    by_ray, by_torchrun = config_file("ray", run=f"{s3_environment.bucket('ray')}/run"), config_file("torchrun")
    ended = run_job("train", str(by_ray), "ray.workers=2", env=cluster, timeout=RAY_SECONDS)
    assert ended.status == 0, ended.stderr
    torchrun(2, "jobs.train_local", by_torchrun)
    runs = [load_config(str(path)).run for path in (by_ray, by_torchrun)]
    mine, theirs = (newest_tensors(run) for run in runs)
    assert mine.keys() == theirs.keys()
    different = [name for name in mine if not mine[name].equal(theirs[name])]
    assert not different
    for ours, other in zip(metrics(runs[0]), metrics(runs[1]), strict=True):
        assert ours == pytest.approx(other, rel=1e-12)

    again = run_job("train", str(by_ray), "ray.workers=2", env={"RAY_ADDRESS": "127.0.0.1:1"})  # nobody is there
    assert again.status == 0, again.stderr
    assert "is finished" in again.stdout


def test_a_run_on_captions_begun_by_two_ray_workers_is_ended_by_one_process(cluster, tmp_path):
    shards = str(write_set(tmp_path / "set"))
    alone, begun = (
        write_config(tmp_path / f"{name}.yaml", str(tmp_path / name), shards) for name in ("alone", "begun")
    )
    assert train_rank(load_config(alone)).finished
    budget = f"trainer.images={5 * captioned.BATCH}"
    ended = run_job("train", begun, "ray.workers=2", budget, env=cluster, timeout=RAY_SECONDS)
    assert ended.status == 0, ended.stderr
    assert train_rank(load_config(begun)).finished
    assert_same_run(folder_of(alone), folder_of(begun))


def test_what_a_person_must_mend_is_told_at_once_and_in_one_line(config_file, cluster, tmp_path):
    """Found by the ranks, said by the driver, not tried again."""
    path = config_file(data={"shards": str(tmp_path / "nowhere")})
    ended = run_job("train", str(path), "ray.workers=2", env=cluster, timeout=RAY_SECONDS)
    assert ended.status == 1
    (line,) = (line for line in ended.stderr.splitlines() if line.startswith("error: "))  # among Ray's own
    assert str(tmp_path / "nowhere") in line
    assert "Traceback" not in ended.stdout + ended.stderr


def test_two_ray_workers_evaluate_as_one_process_does(config_file, cluster):
    config = load_config(str(config_file()))
    train_rank(config)
    figures = Path(config.run) / "evaluations/validation-elbo-1-raw-1280.json"
    evaluate([config.run, "--weights", "raw"])
    alone = json.loads(figures.read_text())["figures"]
    figures.unlink()
    ended = run_job("evaluate", config.run, "--weights", "raw", "--workers", "2", env=cluster, timeout=RAY_SECONDS)
    assert ended.status == 0, ended.stderr
    assert json.loads(figures.read_text())["figures"] == pytest.approx(alone, rel=1e-6)


def test_shards_are_packed_indexed_and_verified_by_ray(cluster, tmp_path):
    """More of them than are at work at once."""
    small = ["--shard-images", "60"]
    packed = run_job("pack", "--source=digits", "--out", str(tmp_path), *small, env=cluster, timeout=RAY_SECONDS)
    assert packed.status == 0, packed.stderr
    counts = [60] * 25 + [27]
    shards = tmp_path / "train"
    assert list(Index.open(str(shards)).counts) == counts
    shutil.rmtree(shards / "index")
    indexed = run_job("index", str(shards), env=cluster, timeout=RAY_SECONDS)
    assert indexed.status == 0, indexed.stderr
    assert "in 26 shards (all read)" in indexed.stdout
    assert list(Index.open(str(shards)).counts) == counts
    verified = run_job("verify", str(shards), env=cluster, timeout=RAY_SECONDS)
    assert verified.status == 0, verified.stderr
    assert verified.stdout == "verified 1,527 images in 26 shards: all good\n"


def test_ray_encodes_a_set_as_local_processes_do(cluster, tmp_path):
    small_sets.write_set(tmp_path / "set", [7, 5, 9, 6])
    encoded = ["encode", str(tmp_path / "set"), "--with", "tests.datasets.encoding.encoders:Numbers", "--out"]
    for name, environment in (("local", {}), ("ray", cluster)):
        ended = run_job(*encoded, str(tmp_path / name), env=environment, timeout=RAY_SECONDS)
        assert ended.status == 0, ended.stderr
    tars = sorted(path.relative_to(tmp_path / "local") for path in (tmp_path / "local").rglob("*.tar"))
    assert tars
    assert all((tmp_path / "ray" / tar).read_bytes() == (tmp_path / "local" / tar).read_bytes() for tar in tars)


def test_workers_start_from_a_folder_with_a_space_and_brackets_in_its_name(tmp_path):
    odd = tmp_path / "my prôject [1]"
    odd.mkdir()
    (odd / ".venv").symlink_to(Path(sys.prefix).resolve())
    script = """if True:
        import sys
        from jobs.ray.cluster import ray_cluster
        with ray_cluster(1):
            import ray
            print(ray.get(ray.remote(lambda: sys.executable).remote(), timeout=100))
    """
    python = odd / ".venv/bin/python"
    command = [str(python), "-c", script]
    ran = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=RAY_SECONDS, check=False)
    assert ran.stdout.splitlines()[-1:] == [str(python)], ran.stderr[-1000:]
