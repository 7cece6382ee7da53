"""A rank that stops answering ends its attempt with the stacks of the others in the log, and the run goes on."""

from __future__ import annotations

import os
import signal
import time

from tests.chaos.checks import problems, steps_of
from tests.chaos.matrix import Bench
from tests.chaos.runs import BATCH, Launch, logs
from tests.jobs.conftest import digits  # noqa: F401  (a fixture)
from tests.testbed.processes import wait_until

HANG = 10.0  # seconds; a step and a start take a small part of that


def test_a_rank_that_hangs_ends_the_attempt_with_stacks_and_the_run_goes_on(tmp_path, digits):  # noqa: F811
    bench = Bench(tmp_path, digits)
    config, folder = bench.new("hung")
    launch = Launch(config, folder, 2, overrides=[f"trainer.hang_timeout={HANG}"], pace=0.05)
    waiting, stopped = launch.processes
    wait_until(lambda: any(step.images >= 6 * BATCH for step in steps_of(folder)), 120, "the sixth step")
    began = time.monotonic()
    os.kill(stopped.pid, signal.SIGSTOP)
    try:
        waiting.join(HANG + 60)
        assert waiting.exitcode == 1
        assert time.monotonic() - began >= HANG - 1  # not by an error of the network
    finally:
        stopped.kill()
    assert launch.wait() == [1, -signal.SIGKILL]
    said = (folder / "log-0.txt").read_text()
    assert f"Timeout (0:00:{HANG:02.0f})!" in said
    assert "trainer/training/loop.py" in said
    assert "most recent call first" in said

    assert Launch(config, folder, 2).wait() == [0, 0], logs(folder)
    assert problems(str(folder / "run"), folder, bench.reference(2)) == []
