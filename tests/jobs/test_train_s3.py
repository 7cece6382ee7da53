"""Shards, index, run folder and checkpoints in an object store."""

from __future__ import annotations

import pytest
import torch

import trainer
from cluster.storage.storage import Storage
from jobs.config.loading import load_config
from jobs.run.training import train_rank
from tests.jobs.conftest import BATCH
from tests.jobs.runs import assert_bitwise_equal, metrics, newest_tensors
from tests.testbed.jobs import fork_job, run_job
from tests.testbed.steps import StopAfter
from trainer.noise import Noise


def test_a_run_lives_in_an_object_store(config_file, s3_environment):
    """Packed to s3, trained from s3, stopped and gone on with, and bitwise what a local run is."""
    bucket = s3_environment.bucket("whole-run")
    packed = run_job("pack", "--source", "digits", "--out", f"{bucket}/digits")
    assert packed.status == 0, packed.stderr
    assert f"{bucket}/digits/train" in packed.stdout

    local = load_config(str(config_file("local")))
    data = {"shards": f"{bucket}/digits/train", "validation": f"{bucket}/digits/validation"}
    remote = load_config(str(config_file("remote", run=f"{bucket}/runs/remote", data=data)))
    train_rank(local)
    assert not train_rank(remote, requests=StopAfter(9)).finished
    assert train_rank(remote).finished
    assert_bitwise_equal(newest_tensors(local.run), newest_tensors(remote.run))
    assert metrics(local.run) == metrics(remote.run)

    names = {entry.path for entry in Storage(remote.run).list()}
    assert {"config.yaml", "final/model.safetensors", "pictures/samples-000000001280.png"} <= names
    model = trainer.load(remote.run)
    assert model.sample(Noise(0, "sample", torch.arange(2))).shape == (2, 1, 8, 8)


def test_wandb_files_of_a_run_in_a_store_lie_in_the_run_folder(config_file, s3_environment):
    bucket = s3_environment.bucket("tracked-run")
    path = config_file(run=f"{bucket}/tracked", tracking={"mode": "offline"}, trainer={"images": 4 * BATCH})
    ended = fork_job("train_local", str(path))
    assert ended.status == 0, ended.stderr
    assert "W&B is offline" in ended.stdout
    files = [entry.path for entry in Storage(f"{bucket}/tracked").list("wandb")]
    assert any(name.endswith(".wandb") for name in files), files


def _said(path, env, *overrides) -> str:
    ended = fork_job("train_local", str(path), *overrides, env=env)
    assert ended.status == 1, ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr
    lines = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, ended.stderr
    return lines[0]


@pytest.mark.parametrize("what", ["run", "data.shards"])
def test_wrong_credentials_are_one_clear_line(config_file, s3, what):
    bucket = s3.bucket("closed")
    wrong = s3.environment | {"AWS_SECRET_ACCESS_KEY": "wrong"}
    line = _said(config_file(), wrong, f"{what}={bucket}/here")
    assert f"{bucket}/here" in line
    assert "access denied; check the credentials in the environment" in line


@pytest.mark.parametrize("what", ["run", "data.shards"])
def test_a_missing_bucket_is_named(config_file, s3, what):
    line = _said(config_file(), s3.environment, f"{what}=s3://no-such-bucket/here")
    assert "s3://no-such-bucket/here" in line
