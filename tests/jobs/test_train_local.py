"""Training as a person does it: start, Ctrl-C, the same command again; what lies in the run folder; plain errors."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

import trainer
from cluster.storage.storage import Storage
from jobs.config.loading import load_config
from jobs.run.training import train_rank
from tests.jobs.conftest import BATCH
from tests.jobs.runs import assert_bitwise_equal, evaluation_rows, metrics, newest_tensors, training_rows
from tests.testbed.jobs import Finished, ForkedJob, Job, call_job, fork_job, run_job
from tests.testbed.processes import REPOSITORY, free_ports
from tests.testbed.steps import StopAfter
from trainer.checkpoints.lineage import Lineage
from trainer.distributed.requests import Requests
from trainer.errors import TrainingError
from trainer.noise import Noise

LONG = {"images": 40_000_000, "evaluate_every": 40_000_000, "log_every": 640}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_commits_and_the_same_command_goes_on(config_file, number):
    path = config_file(trainer=LONG)
    with ForkedJob("train_local", str(path)) as job:
        job.wait_for("images/s")
        job.signal(number)
        ended = job.wait()
    assert ended.status == 0, ended.stderr
    assert "the same command resumes the run" in ended.stdout
    images = next(Lineage(Storage(load_config(str(path)).run)).history()).images
    assert f"stopped and committed after {images:,} images" in ended.stdout

    again = fork_job("train_local", str(path), f"trainer.images={images + BATCH}")
    assert again.status == 0, again.stderr
    assert f"resuming after {images:,} images" in again.stdout
    assert f"finished after {images + BATCH:,} images" in again.stdout


def test_a_finished_run_says_so_and_leaves_its_folder_alone(config_file, capsys):
    config = load_config(str(config_file()))
    train_rank(config)
    before = {entry.path: entry.etag for entry in Storage(config.run).list()}
    capsys.readouterr()
    assert train_rank(config).finished
    assert "is finished" in capsys.readouterr().out
    assert {entry.path: entry.etag for entry in Storage(config.run).list()} == before


def test_the_run_folder_holds_what_the_readme_says(config_file):
    config = load_config(str(config_file()))
    outcome = train_rank(config)
    run = Path(config.run)

    assert yaml.safe_load((run / "config.yaml").read_text()) == config.model_dump(mode="json")
    rows = training_rows(run)
    assert [row["images"] for row in rows] == [2 * BATCH * n for n in range(1, 11)]
    wanted = {"train/bpd", "train/distortion", "train/rate/z1", "train/lr", "train/gradient_norm", "train/skipped"}
    assert all(wanted <= row.keys() for row in rows)
    assert rows[0]["train/bpd"] > rows[-1]["train/bpd"] > 0
    assert evaluation_rows(run)[-1]["validation/bpd"] == outcome.evaluation.bpd
    assert outcome.evaluation.images == 270
    for name in ("samples", "reconstructions"):
        for images in (640, 1280):
            with Image.open(run / f"pictures/{name}-{images:012d}.png") as picture:
                assert picture.size == (102, 102)  # 2 x 2 images of 8 x 8 pixels, six times enlarged, in gaps of 2


def test_load_gives_the_averaged_weights_back(config_file):
    config = load_config(str(config_file()))
    train_rank(config)
    model = trainer.load(config.run)
    saved = newest_tensors(config.run)
    for name, value in model.state_dict().items():
        assert value.equal(saved[f"ema/{name}"])
    for name, value in trainer.load(config.run, weights="raw").state_dict().items():
        assert value.equal(saved[f"model/{name}"])
    samples = model.sample(Noise(0, "sample", torch.arange(5)))
    assert samples.shape == (5, 1, 8, 8)
    assert samples.dtype == torch.uint8
    assert samples.max() < 17


def test_a_finished_run_can_be_extended(config_file):
    config = load_config(str(config_file()))
    train_rank(config)
    longer = load_config(str(config_file()), [f"trainer.images={30 * BATCH}"])
    assert train_rank(longer).images == 30 * BATCH
    assert metrics(config.run)[-1]["images"] == 30 * BATCH


def test_an_older_process_stops_when_a_newer_one_has_taken_over(config_file):
    config = load_config(str(config_file()))
    train_rank(config, requests=StopAfter(3))

    class TakeOver(Requests):
        def stop(self) -> bool:
            lineage = Lineage(Storage(config.run))
            if lineage.newest_attempt() == 2:  # this process; another one begins
                lineage.claim(next(lineage.history()))
            return False

    with pytest.raises(TrainingError, match="attempt 3 has taken over this run, so attempt 2 stops here"):
        train_rank(config, requests=TakeOver())
    assert [commit.images for commit in Lineage(Storage(config.run)).history()] == [3 * BATCH]


def test_a_diverging_run_is_stopped_with_the_reason(config_file):
    changes = {"optim": {"lr": 1e18, "clip": 1e30}, "trainer": {"guard": {"max_skips": 5}, "images": 60 * BATCH}}
    config = load_config(str(config_file(**changes)))
    with pytest.raises(TrainingError, match=r"diverged: .* steps in a row"):
        train_rank(config)


# ---- user errors


def _said(path: Path, *overrides: str, start: Callable[..., Finished] = call_job) -> str:
    """The one line on stderr of a run that cannot start or go on."""
    ended = start("train_local", str(path), *overrides)
    assert ended.status == 1, ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr
    lines = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, ended.stderr
    return lines[0]


def test_a_missing_folder_of_shards_is_named(config_file, tmp_path):
    line = _said(config_file(data={"shards": str(tmp_path / "nowhere")}), start=run_job)
    assert str(tmp_path / "nowhere") in line


def test_an_unknown_key_is_named_with_the_nearest(config_file):
    line = _said(config_file(), "optim.learning_rate=1")
    assert "optim.learning_rate: unknown key" in line
    assert "allowed are betas" in line
    assert "did you mean 'latent'?" in _said(config_file(), "model.latnt=3")


def test_a_run_of_another_model_is_not_gone_on_with(config_file):
    path = config_file()
    train_rank(load_config(str(path)), requests=StopAfter(2))
    line = _said(path, "model.latent=5")
    assert "model.latent is 4 in the run and 5 here" in line
    train_rank(load_config(str(path)))
    assert "model.latent is 4 in the run and 5 here" in _said(path, "model.latent=5")


def test_a_run_on_other_images_is_not_gone_on_with(config_file, digits):
    path = config_file()
    train_rank(load_config(str(path)), requests=StopAfter(2))
    assert "was started on other images" in _said(path, f"data.shards={digits / 'validation'}")


def test_more_ranks_or_streams_than_fit_are_told(config_file):
    assert "streams" in _said(config_file(data={"streams": 5}))


def test_a_likelihood_for_other_levels_is_told(config_file):
    line = _said(config_file(), "model.likelihood={kind: bernoulli}")
    assert "bernoulli is for images of 2 levels, these have 17" in line


@pytest.fixture
def own_shards(digits, tmp_path):
    """A copy of the training shards, to be spoilt."""
    folder = tmp_path / "own"
    folder.mkdir()
    for shard in (digits / "train").glob("*.tar"):
        (folder / shard.name).write_bytes(shard.read_bytes())
    return folder


def _add_sample(shard: Path, png: bytes, label: bytes) -> None:
    with tarfile.open(shard, "a") as tar:
        for name, data in (("zz.png", png), ("zz.cls", label)):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def test_a_file_that_is_no_tar_is_named(own_shards):
    (own_shards / "000003.tar").write_bytes(b"this is no tar" * 1000)
    ended = call_job("index", str(own_shards), "--on-bad=stop")
    assert ended.status == 1
    assert "000003.tar" in ended.error
    ended = call_job("index", str(own_shards))
    assert ended.status == 0
    assert "000003.tar" in ended.stdout + ended.stderr


def _png(side: int, mode: str = "L", value: int = 3) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (side, side), value).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("png", "label", "expected"),
    [
        (b"not an image", b"3", "does not decode"),
        (_png(9), b"3", "images differ in size"),
        (_png(8, value=99), b"3", "99"),
        (_png(8), b"12", "label 12 is outside"),
    ],
)
def test_a_bad_sample_stops_the_run_with_its_name(config_file, own_shards, png, label, expected):
    _add_sample(own_shards / "000003.tar", png, label)
    options = "--levels=17", "--class-names=0,1,2,3,4,5,6,7,8,9", "--on-bad=stop"
    indexed = call_job("index", str(own_shards), *options)
    if indexed.status == 0:  # otherwise the scan has found it already
        line = _said(config_file(data={"shards": str(own_shards)}), f"trainer.images={40 * BATCH}")
    else:
        line = indexed.error
    assert "000003.tar" in line
    assert expected in line


def test_a_full_disk_leaves_the_last_checkpoint(config_file):
    path = config_file()
    run = load_config(str(path)).run
    train_rank(load_config(str(path)), requests=StopAfter(3))
    before = newest_tensors(run)
    # No file may grow beyond 20 KiB: what a full disk does to the weights of a checkpoint, and to no smaller file.
    command = f"ulimit -f 20 && exec {sys.executable} -m jobs.train_local {path}"
    ended = subprocess.run(["bash", "-c", command], cwd=REPOSITORY, capture_output=True, text=True, timeout=180)
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert f"{run}/checkpoints/" in ended.stderr
    assert_bitwise_equal(newest_tensors(run), before)
    assert train_rank(load_config(str(path))).finished


def test_left_over_ranks_are_named_at_once_and_ctrl_c_ends_the_wait(config_file):
    (port,) = free_ports(1)
    left_over = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}
    left_over |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with Job("train_local", str(config_file()), env=left_over) as job:
        job.wait_for("rank 0 waits for 2 ranks at 127.0.0.1", 60)
        job.signal(signal.SIGINT)
        ended = job.wait(30)
    assert ended.status == -signal.SIGINT
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("left_over", [{"WORLD_SIZE": "2", "RANK": "0"}, {"WORLD_SIZE": "many", "RANK": "1"}])
def test_half_a_rendezvous_is_one_line(config_file, left_over):
    ran = run_job("train_local", str(config_file()), env=left_over)
    assert ran.status == 1
    assert ran.error.startswith("error: the environment describes no group of ranks (WORLD_SIZE=")
    assert ran.error.endswith("unset WORLD_SIZE and RANK to train with one process, or start the ranks with torchrun")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
@pytest.mark.parametrize("moment", ["loaders", "evaluation"])
def test_a_request_to_stop_commits_whenever_it_comes(config_file, number, moment):
    """While loader processes start, to them as well (the whole process group); while an evaluation is made."""
    trainer = {"images": 10**7, "evaluate_every": 4 * BATCH, "checkpoint_every": 10**7, "log_every": BATCH}
    path = config_file(trainer=trainer, data={"workers": 2, "cache": 0})
    with Job("train_local", str(path)) as job:
        job.wait_for("loader processes" if moment == "loaders" else "validation", 60)
        os.killpg(job.process.pid, number)
        ended = job.wait(60)
    assert ended.status == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    assert "was killed" not in ended.stderr
    assert "the same command resumes the run" in ended.stdout


def test_ctrl_c_while_modules_are_imported_is_no_traceback(config_file):
    """A command imports torch for a second before its own handler of signals is there."""
    command = [sys.executable, "-m", "jobs.train_local", str(config_file())]

    def heed_interrupts() -> None:  # which a shell lets the commands that it runs in the background ignore
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(
        command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True, preexec_fn=heed_interrupts
    ) as process:
        while "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text() and process.poll() is None:
            time.sleep(0.001)
        process.send_signal(signal.SIGINT)
        error = process.stderr.read()
    assert process.returncode != 0
    assert "Traceback" not in error
    assert "interrupted" in error
