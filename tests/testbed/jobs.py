"""Jobs as a person starts them: `python -m jobs.NAME ...` from the repository's root, in a process of its own."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import IO, NamedTuple
from unittest.mock import patch

from jobs import cli
from tests.testbed.processes import REPOSITORY


class Finished(NamedTuple):
    """How a job ended."""

    status: int  # exit status; negative: the signal that ended it
    stdout: str
    stderr: str

    @property
    def error(self) -> str:
        """The last line on stderr, which is the one meant for a person."""
        return self.stderr.strip().rpartition("\n")[2]


class Job:
    """A running `python -m jobs.NAME arguments`, to be signalled and watched: `with Job("train_local", path) as job`.

    The job leads a process group of its own; at the end of the block the whole group is killed. `env` is added to this
    process's environment.
    """

    def __init__(self, name: str, *arguments: str, env: Mapping[str, str] | None = None):
        self._stdout = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the job)
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-m", f"jobs.{name}", *map(str, arguments)],
            cwd=REPOSITORY,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=self._stdout,
            stderr=self._stderr,
            start_new_session=True,
        )

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._stdout.close()
        self._stderr.close()

    @property
    def output(self) -> str:
        """Everything printed so far, stdout then stderr."""
        return self._text(self._stdout) + self._text(self._stderr)

    def wait_for(self, text: str, timeout: float = 120.0) -> None:
        """Return as soon as the job has printed `text`; AssertionError with its output if it never does."""
        deadline = time.monotonic() + timeout
        while text not in self.output:
            ended = self.process.poll() is not None
            if time.monotonic() > deadline or (ended and text not in self.output):
                raise AssertionError(f"{text!r} was never printed (exit status {self.process.poll()}):\n{self.output}")
            time.sleep(0.05)

    def signal(self, number: int) -> None:
        """Send a signal to the job's first process alone, as `kill` does."""
        self.process.send_signal(number)

    def wait(self, timeout: float = 180.0) -> Finished:
        """The job's end; after `timeout` seconds it is killed and AssertionError shows what it had printed."""
        try:
            status = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the job ran longer than {timeout:g} s:\n{self.output}") from None
        return Finished(status, self._text(self._stdout), self._text(self._stderr))

    def kill(self) -> None:
        """SIGKILL to the job and to every process of its group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    @staticmethod
    def _text(file: IO[bytes]) -> str:
        # The job writes at the position that it shares with us: read by offset, do not seek.
        return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode(errors="replace")


def run_job(name: str, *arguments: str, env: Mapping[str, str] | None = None, timeout: float = 180.0) -> Finished:
    """Run `python -m jobs.NAME arguments` to its end.

    `env` is added to this process's environment. After `timeout` seconds the job is killed with its process group, and
    AssertionError shows what it had printed.
    """
    with Job(name, *arguments, env=env) as job:
        return job.wait(timeout)


def call_job(name: str, *arguments: str) -> Finished:
    """What `python -m jobs.NAME arguments` does and prints, in this process: without the seconds of a new one."""
    main = importlib.import_module(f"jobs.{name}").main
    stdout, stderr, status = io.StringIO(), io.StringIO(), 0
    with (
        patch.object(sys, "argv", [name, *map(str, arguments)]),
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
    ):
        try:
            cli.run(main)
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return Finished(status, stdout.getvalue(), stderr.getvalue())
