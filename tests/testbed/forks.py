"""Processes that fork from one that has everything imported: the imports cost more than a small run does."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

context = multiprocessing.get_context("forkserver")
# With what torch and accelerate import only when a run begins (the last two): that is half of a small run.
context.set_forkserver_preload(
    [
        "jobs.train_local",
        "trainer.distributed.sharding",
        "obstore",
        "PIL.Image",
        "torch._dynamo",
        "torch.distributed.tensor",
    ]
)


class Fork:
    """A call in a fork that leads a process group of its own, to be handled as a subprocess.Popen."""

    def __init__(self, call: Callable[..., object], *arguments: object):
        self._process = context.Process(target=call, args=arguments)
        self._process.start()
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """The exit status; subprocess.TimeoutExpired after so many seconds."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("a fork", timeout)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def settle(stdout: str | Path, stderr: str | Path, environment: Mapping[str, str]) -> None:
    """In a fork: lead a process group, append what is printed to files, add to the environment."""
    os.setsid()
    for path, stream in ((stdout, 1), (stderr, 2)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, stream)
        os.close(file)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    os.environ.update(environment)
