"""Several ranks on this machine: as torchrun starts them, or as forks of one process that has imported everything."""

from __future__ import annotations

import faulthandler
import multiprocessing.connection
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.testbed.forks import context
from tests.testbed.processes import REPOSITORY, free_ports

STACKS_SECONDS = 2.0  # in which a hanging process prints its stacks


def torchrun(ranks: int, module: str, *arguments: str | Path | int, timeout: float = 180.0) -> str:
    """Run a module on so many ranks to its end and return what they printed; AssertionError if one failed."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    ran = subprocess.run(
        [*command, "-m", module, *map(str, arguments)],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def together(ranks: int, call: Callable[..., object], *arguments: object, timeout: float = 180.0) -> None:
    """Run `call(*arguments)`, a function of a module, on so many ranks; AssertionError if one failed.

    Each is a process of its own, a fork of one that has imported the trainer. One that hangs prints its stacks.
    """
    (port,) = free_ports(1)
    processes = [context.Process(target=_as_rank, args=(me, ranks, port, call, arguments)) for me in range(ranks)]
    for process in processes:
        process.start()
    end = time.monotonic() + timeout
    try:
        while alive := [process for process in processes if process.is_alive()]:
            multiprocessing.connection.wait([p.sentinel for p in alive], max(0.0, end - time.monotonic()))
            if time.monotonic() > end:
                for process in alive:
                    assert process.pid
                    os.kill(process.pid, signal.SIGUSR1)
                time.sleep(STACKS_SECONDS)
                raise AssertionError(f"the ranks have not ended after {timeout} s")
            assert not any(process.exitcode for process in processes), "a rank failed; its error is above"
    finally:
        for process in processes:
            process.kill()
            process.join()
    assert not any(process.exitcode for process in processes), "a rank failed; its error is above"


def _as_rank(me: int, ranks: int, port: int, call: Callable[..., object], arguments: tuple[object, ...]) -> None:
    place = {"RANK": me, "LOCAL_RANK": me, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    os.environ |= {name: str(value) for name, value in place.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    faulthandler.register(signal.SIGUSR1, all_threads=True)  # it prints also where no Python code can run
    call(*arguments)
    from trainer.distributed.ranks import shutdown

    shutdown()  # as a command ends
