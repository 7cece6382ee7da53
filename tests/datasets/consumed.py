"""Ranks of a real job that record the images they train on, and the images that led to the newest commit."""

from __future__ import annotations

import random
import signal
import sys
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from cluster.storage.storage import Storage
from tests.datasets.small_sets import number_of
from tests.testbed.forks import context, settle
from tests.testbed.processes import free_ports, wait_until
from trainer.checkpoints.lineage import Lineage

_GRACE = 10.0  # seconds between SIGTERM and SIGKILL for the ranks that a dead one has left behind


class Ranks:
    """`jobs.train_local` started on several ranks, with the environment that torchrun would give them."""

    def __init__(self, ranks: int, config: Path, overrides: list[str], folder: Path, environment: Mapping[str, str]):
        (port,) = free_ports(1)
        where = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        self.processes: list[ForkServerProcess] = []
        for rank in range(ranks):
            own = {**environment, **where, "RANK": rank, "LOCAL_RANK": rank}
            given = {name: str(value) for name, value in own.items()}
            self.processes.append(context.Process(target=_live, args=(config, overrides, folder, rank, given)))
            self.processes[-1].start()

    def kill(self, ready: Callable[[], bool], delay: float, draw: random.Random) -> None:
        """SIGKILL to one of the ranks `delay` seconds after something is so; then all are ended."""
        wait_until(lambda: ready() or not self._alive(), 180, "the moment of death", pause=0.5)
        time.sleep(delay)
        victim = draw.choice(self.processes)
        victim.kill()
        victim.join()
        self._end()
        assert victim.exitcode == -signal.SIGKILL, "it had ended by itself"

    def wait(self, seconds: float) -> list[int | None]:
        """The exit status of every rank; None: it has not ended."""
        end = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(end - time.monotonic(), 0))
        status = [process.exitcode for process in self.processes]
        self._end()
        return status

    def _end(self) -> None:
        end = time.monotonic() + _GRACE
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.join(max(end - time.monotonic(), 0))
            process.kill()
            process.join()

    def _alive(self) -> bool:
        return all(process.is_alive() for process in self.processes)


def newest(run: str) -> int:
    """The image count of the newest commit; 0 without one."""
    return next((commit.images for commit in Lineage(Storage(run)).history()), 0)


def consumed(run: str, folder: Path) -> list[list[int]]:
    """The numbers of the images of each step that led to the newest weights; sorted within a step."""
    lineage = Lineage(Storage(run))
    end = newest(run)
    steps: dict[int, list[int]] = {}
    for attempt, first, last in lineage.segments():
        for path in folder.glob(f"trained-{attempt}-*.txt"):
            for line in path.read_text().splitlines():
                start, *numbers = map(int, line.split())
                if first <= start < (end if last is None else last):
                    steps.setdefault(start, []).extend(numbers)
    return [sorted(steps[start]) for start in sorted(steps)]


def _live(config: Path, overrides: list[str], folder: Path, rank: int, environment: dict[str, str]) -> None:
    log = folder / f"log-{rank}.txt"
    settle(log, log, environment)
    from cluster.storage import storage
    from jobs import cli, train_local

    storage.CLIENT["read_timeout"] = "2s"  # a stall is noticed sooner
    storage.RETRIES["backoff"] = {"init_backoff": timedelta(milliseconds=5)}
    _note(folder, rank)
    sys.argv = ["train_local", str(config), *overrides]
    cli.run(train_local.main)


def _note(folder: Path, rank: int) -> None:
    """Record the numbers in the images of every batch, by attempt, in files that outlive the process."""
    from jobs.run import data
    from trainer.checkpoints.checkpointer import Checkpointer

    claim, batches = Checkpointer.claim, data.training_batches
    checkpointers: list[Checkpointer] = []  # of this process; a damaged commit makes it claim another attempt

    def claim_and_note(self: Any, *arguments: Any) -> Any:
        checkpointers[:] = [self]
        return claim(self, *arguments)

    def noted(*arguments: Any, start: int, batch: int, **options: Any) -> Any:
        loaded = batches(*arguments, start=start, batch=batch, **options)
        seen = [start]

        class Noted(type(loaded)):  # type: ignore[misc]
            def __next__(self) -> Any:
                taken = super().__next__()
                numbers = [number_of(image.numpy()) for image in taken.images[taken.weights > 0]]
                attempt = checkpointers[0].attempt
                assert attempt is not None
                with (folder / f"trained-{attempt.number}-{rank}.txt").open("a") as file:
                    file.write(f"{seen[0]} {' '.join(map(str, numbers))}\n")
                seen[0] += batch
                return taken

        loaded.__class__ = Noted
        return loaded

    Checkpointer.claim = claim_and_note  # type: ignore[method-assign]
    data.training_batches = noted  # type: ignore[assignment]
