"""Jobs as a person starts them: `python -m jobs.NAME ...` from the repository's root, in a process of its own.

Where a new Python and its imports prove nothing, a fork does the same in less time, or a call in this process.
"""

from __future__ import annotations

import atexit
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
from typing import IO, NamedTuple, Protocol
from unittest.mock import patch

from jobs import cli
from tests.testbed.forks import Fork, settle
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


class Process(Protocol):
    """What a job needs of its process; subprocess.Popen has it."""

    pid: int

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def send_signal(self, sig: int, /) -> None: ...


class Job:
    """A running `python -m jobs.NAME arguments`, to be signalled and watched: `with Job("train_local", path) as job`.

    The job leads a process group of its own; at the end of the block the whole group is killed. `env` is added to this
    process's environment.
    """

    def __init__(self, name: str, *arguments: str, env: Mapping[str, str] | None = None):
        self._stdout = tempfile.NamedTemporaryFile()  # noqa: SIM115  (closed with the job)
        self._stderr = tempfile.NamedTemporaryFile()  # noqa: SIM115
        self.process = self._start(name, [*map(str, arguments)], {**os.environ, **(env or {})})

    def _start(self, name: str, arguments: list[str], environment: dict[str, str]) -> Process:
        return subprocess.Popen(
            [sys.executable, "-m", f"jobs.{name}", *arguments],
            cwd=REPOSITORY,
            env=environment,
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
        self.process.send_signal(signal.SIGKILL)  # a fork that does not yet lead its group
        self.process.wait()

    @staticmethod
    def _text(file: IO[bytes]) -> str:
        # The job writes at the position that it shares with us: read by offset, do not seek.
        return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode(errors="replace")


class ForkedJob(Job):
    """The same in a fork of a process that has the trainer imported."""

    def _start(self, name: str, arguments: list[str], environment: dict[str, str]) -> Process:
        return Fork(_as_command, name, arguments, self._stdout.name, self._stderr.name, environment)


def run_job(name: str, *arguments: str, env: Mapping[str, str] | None = None, timeout: float = 180.0) -> Finished:
    """Run `python -m jobs.NAME arguments` to its end.

    `env` is added to this process's environment. After `timeout` seconds the job is killed with its process group, and
    AssertionError shows what it had printed.
    """
    with Job(name, *arguments, env=env) as job:
        return job.wait(timeout)


def fork_job(name: str, *arguments: str, env: Mapping[str, str] | None = None, timeout: float = 180.0) -> Finished:
    """As `run_job`, in a fork of a process that has the trainer imported."""
    with ForkedJob(name, *arguments, env=env) as job:
        return job.wait(timeout)


def _as_command(name: str, arguments: list[str], stdout: str, stderr: str, environment: dict[str, str]) -> None:
    os.environ.clear()
    settle(stdout, stderr, environment)
    sys.argv = [name, *arguments]
    try:
        cli.run(importlib.import_module(f"jobs.{name}").main)
    finally:
        atexit._run_exitfuncs()  # which a fork of multiprocessing leaves out


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
