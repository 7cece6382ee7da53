"""The real W&B client logs to the test server, resumes, syncs and waits."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.testbed.processes import wait_until

LOG = """
import sys, time
import numpy as np
import wandb

first, last = int(sys.argv[1]), int(sys.argv[2])
run = wandb.init(project="digits", id="run-1", resume="allow", config={"lr": 0.1})
run.define_metric("images")
run.define_metric("*", step_metric="images")
for i in range(first, last):
    run.log({"images": 64 * i, "train/bpd": 5.0 - i})
run.log({"images": 64 * last, "samples": wandb.Image(np.zeros((8, 8), np.uint8))})
run.finish()
"""


@pytest.fixture
def log(tmp_path):
    def start(*arguments, env):
        return subprocess.run(
            [sys.executable, "-c", LOG, *map(str, arguments)],
            env={**os.environ, **env, "WANDB_DIR": str(tmp_path)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )

    return start


def bpd(server):
    return [row["train/bpd"] for row in server.rows("run-1") if "train/bpd" in row]


def test_a_run_logs_online_and_resumes_under_the_same_id(wandb_server, log):
    done = log(0, 25, env=wandb_server.environment)
    assert done.returncode == 0, done.stderr
    run = wandb_server.runs["run-1"]
    assert bpd(wandb_server) == [5.0 - i for i in range(25)]
    assert [row["images"] for row in wandb_server.rows("run-1")] == [64 * i for i in range(26)]
    assert (run.project, run.exit_code, run.count("wandb-history.jsonl")) == ("digits", 0, 26)
    assert [name for name in run.files if name.startswith("media/images/samples") and run.files[name][:4] == b"\x89PNG"]

    done = log(25, 30, env=wandb_server.environment)
    assert done.returncode == 0, done.stderr
    assert bpd(wandb_server) == [5.0 - i for i in range(30)]
    steps = [row["_step"] for row in wandb_server.rows("run-1")]
    assert steps == sorted(set(steps))
    assert wandb_server.unknown == []


def test_an_offline_run_is_synced(wandb_server, log, tmp_path):
    assert log(0, 10, env={"WANDB_MODE": "offline"}).returncode == 0
    assert wandb_server.rows("run-1") == []
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    command = [sys.executable, "-m", "wandb", "sync", str(folder)]
    env = {**os.environ, **wandb_server.environment}
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert bpd(wandb_server) == [5.0 - i for i in range(10)]


def test_rows_survive_a_server_that_fails_for_a_while(wandb_server, log):
    def outage():
        wait_until(lambda: "run-1" in wandb_server.runs, 60, "the run's start", pause=0.001)
        wandb_server.failing = 503
        wait_until(lambda: wandb_server.refused >= 2, 60, "the second refused request")
        wandb_server.failing = None

    with ThreadPoolExecutor() as pool:
        fails = pool.submit(outage)
        done = log(0, 10, env=wandb_server.environment)
        fails.result()
    assert done.returncode == 0, done.stderr
    assert bpd(wandb_server) == [5.0 - i for i in range(10)]
