"""The tests' own surroundings: nothing of the person who runs them, and processes that end."""

import os
import time

import pytest

from tests.testbed import jobs
from tests.testbed.jobs import Job, run_job

SLEEPER = (
    "import subprocess, sys, time; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); time.sleep(60)"
)


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Write jobs/NAME.py below a folder of its own and make that folder the one from which jobs are started."""
    (tmp_path / "jobs").mkdir()
    monkeypatch.setattr(jobs, "REPOSITORY", tmp_path)
    return lambda name, text: (tmp_path / "jobs" / f"{name}.py").write_text(text)


def _alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_no_account_of_the_person_who_runs_the_tests_is_seen():
    assert not [name for name in os.environ if name.startswith(("AWS_", "RAY_", "GOOGLE_", "AZURE_"))]
    assert {name for name in os.environ if name.startswith("WANDB_")} == {"WANDB_CONFIG_DIR", "WANDB_ERROR_REPORTING"}


@pytest.mark.parametrize("turn", [1, 2])
def test_what_a_test_sets_ends_with_it(turn):
    assert "AWS_ACCESS_KEY_ID" not in os.environ
    os.environ["AWS_ACCESS_KEY_ID"] = f"of turn {turn}"


def test_the_s3_variables_are_set_for_a_test_that_asks_for_them(s3_environment):
    assert os.environ["AWS_ENDPOINT_URL"] == s3_environment.endpoint


def test_torch_computes_on_one_thread():
    import torch

    assert torch.get_num_threads() == 1


def test_a_finished_job_shows_status_and_output(script):
    script("fail", "import os, sys; print(os.environ['GREETING']); sys.exit('first line\\nsecond line')")
    finished = run_job("fail", env={"GREETING": "hello"})
    assert finished == (1, "hello\n", "first line\nsecond line\n")
    assert finished.error == "second line"


def test_a_job_that_hangs_is_killed_with_its_children(script):
    script("sleeper", SLEEPER)
    with pytest.raises(AssertionError, match=r"longer than 2 s:\n\d+") as caught:
        run_job("sleeper", timeout=2)
    child = int(str(caught.value).split("\n")[1])
    deadline = time.monotonic() + 10
    while _alive(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not _alive(child)


def test_a_job_can_be_watched_and_signalled(script):
    script(
        "listener",
        "import signal, sys\nsignal.signal(15, lambda *_: sys.exit(7))\nprint('up', flush=True)\nsignal.pause()",
    )
    with Job("listener") as job:
        job.wait_for("up")
        job.signal(15)
        assert job.wait(20).status == 7


def test_waiting_for_words_of_a_job_that_has_left_fails_at_once(script):
    script("short", "print('something else')")
    with Job("short") as job, pytest.raises(AssertionError, match="something else"):
        job.wait_for("never said")
