"""Standard output that is closed, full, ASCII or without a reader; limits of the machine."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.storage.storage import Storage
from jobs.config.loading import load_config
from jobs.limits import limit_met
from tests.jobs.conftest import BATCH
from tests.testbed.processes import REPOSITORY
from trainer.checkpoints.lineage import Lineage


def train(path: Path, stdout: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Train with stdout redirected by a shell."""
    command = f"{sys.executable} -m jobs.train_local {path} {stdout}"
    env = os.environ | environment
    return subprocess.run(["bash", "-c", command], cwd=REPOSITORY, env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("stdout", "reason"),
    [
        ("| true; exit ${PIPESTATUS[0]}", "Broken pipe"),
        ("> /dev/full", "No space left on device"),
        (">&-", None),
    ],
)
def test_training_continues_without_stdout(config_file: Callable[..., Path], stdout: str, reason: str | None) -> None:
    path = config_file(trainer={"images": 6 * BATCH})
    ran = train(path, stdout)
    assert ran.returncode == 0, ran.stderr
    said = f"stdout cannot be written to ({reason}); the work continues without it\n"
    assert ran.stderr == (said if reason else "")
    assert next(Lineage(Storage(load_config(str(path)).run)).history()).images == 6 * BATCH


def test_an_ascii_stdout_gets_escapes(config_file: Callable[..., Path]) -> None:
    ran = train(config_file("läuft", trainer={"images": 2 * BATCH}), "", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "l\\xe4uft" in ran.stdout


def test_a_command_whose_reader_leaves_does_not_claim_success(digits: Path) -> None:
    command = f"{sys.executable} -m jobs.verify {digits}/train | true; exit ${{PIPESTATUS[0]}}"
    ran = subprocess.run(["bash", "-c", command], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (141, "")


def test_a_full_stdout_is_one_line(digits: Path) -> None:
    command = f"{sys.executable} -m jobs.verify {digits}/train > /dev/full"
    ran = subprocess.run(["bash", "-c", command], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (1, "error: no space left on the disk\n")


def test_a_limit_of_open_files_is_named(digits: Path) -> None:
    command = f"ulimit -n 12; {sys.executable} -m jobs.verify {digits}/train"
    ran = subprocess.run(["bash", "-c", command], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert "Traceback" not in ran.stderr
    assert "ulimit -n is 12" in ran.stderr


def test_errors_of_limits_name_them() -> None:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert limit_met(OSError(errno.EMFILE, "", "/x")) == f"/x: too many open files (ulimit -n is {files})"
    assert "ulimit -u is" in str(limit_met(RuntimeError("can't start new thread")))
    assert "ulimit -u is" in str(limit_met(BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")))
    assert "out of memory (ulimit -v is" in str(limit_met(MemoryError()))
    assert limit_met(RuntimeError("a bug")) is None
    assert limit_met(FileNotFoundError(errno.ENOENT, "", "/x")) is None
