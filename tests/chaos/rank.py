"""One rank of a run that suffers faults: what runs in its process, with the moment of its death built in."""

from __future__ import annotations

import functools
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tests.testbed.forks import settle


class Death(NamedTuple):
    """When a rank kills itself (SIGKILL: no handler, no clean-up), or something else happens to it.

    "step": so many seconds after it has trained `at` images. Within the first checkpoint that it writes from `at`
    images on: "upload": in the middle of a file; "manifest": all files are written, the manifest is not; "committed":
    just after the manifest; "rows": just after the rows of metrics, before the manifest.
    """

    moment: str
    at: int  # images
    delay: float = 0.0  # seconds
    rank: int = 0
    signal: int = signal.SIGKILL


class Life(NamedTuple):
    """All that a rank is told."""

    config: str
    overrides: tuple[str, ...]
    rank: int
    ranks: int
    port: int
    folder: str  # for its log and its trace
    death: Death | None = None
    environment: tuple[tuple[str, str], ...] = ()
    file_limit: int | None = None  # bytes that no file may exceed: a full disk, for the large files
    pace: float = 0.0  # seconds that a step takes longer, so that there is time for fault from outside


def live(life: Life) -> None:
    """Train as `python -m jobs.train_local` or one of torchrun's processes would."""
    log = f"{life.folder}/log-{life.rank}.txt"
    settle(log, log, dict(life.environment))
    if life.ranks > 1:
        os.environ.update(RANK=str(life.rank), LOCAL_RANK=str(life.rank), WORLD_SIZE=str(life.ranks))
        os.environ.update(LOCAL_WORLD_SIZE=str(life.ranks), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(life.port))
    if life.file_limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (life.file_limit, resource.RLIM_INFINITY))

    from jobs import cli, train_local

    trace(life.folder, life.rank, life.pace)
    if life.death and life.death.rank == life.rank:
        prepare(life.death)
    sys.argv = ["train_local", life.config, *life.overrides]
    cli.run(train_local.main)


_seen = 0  # images that this rank has trained


def trace(folder: str, rank: int, pace: float = 0.0) -> None:
    """Note every batch that this rank trains, in a file for each attempt that outlives the process.

    A line is the images trained before, the time (seconds since 1970) and the batch's positions.
    """
    from jobs.run import data
    from trainer.checkpoints.checkpointer import Checkpointer

    claim, batches = Checkpointer.claim, data.training_batches
    checkpointers: list[Checkpointer] = []  # of this process; a damaged commit makes it claim another attempt

    @functools.wraps(claim)
    def claim_and_note(self: Any, *arguments: Any) -> Any:
        checkpointers[:] = [self]
        return claim(self, *arguments)

    def traced(*arguments: Any, start: int, **options: Any) -> Any:
        global _seen
        _seen = start
        loaded = batches(*arguments, start=start, **options)
        step = type(loaded).__next__

        class Traced(type(loaded)):  # type: ignore[misc]
            def __next__(self) -> Any:
                global _seen
                batch = step(self)
                positions = batch.positions[batch.weights > 0].tolist()
                attempt = checkpointers[0].attempt
                assert attempt is not None
                with Path(f"{folder}/trace-{attempt.number:04d}-{rank}.txt").open("a") as file:
                    file.write(f"{_seen} {time.time():.3f} {' '.join(map(str, positions))}\n")
                time.sleep(pace)
                _seen += options["batch"]
                return batch

        loaded.__class__ = Traced
        return loaded

    Checkpointer.claim = claim_and_note  # type: ignore[method-assign]
    data.training_batches = traced  # type: ignore[assignment]


def prepare(death: Death, mark: Path | None = None) -> None:
    """Build the moment of death in; it leaves the file `mark`."""

    def die() -> None:
        if mark:
            mark.write_text(str(time.time()))
        os.kill(os.getpid(), death.signal)
        if death.signal == signal.SIGKILL:
            time.sleep(60)

    if death.moment == "step":

        def wait() -> None:
            while _seen < death.at:
                time.sleep(0.001)
            time.sleep(death.delay)
            die()

        threading.Thread(target=wait, daemon=True).start()
        return

    from cluster.storage.storage import Storage
    from trainer.checkpoints.commit import Commit

    write = Storage.write

    def watched(self: Storage, path: str, data: Any) -> None:
        folder, _, name = path.partition("/")
        commit = Commit.named(name.partition("/")[0].removesuffix(".jsonl"))
        if commit is None or commit.images < death.at:
            write(self, path, data)
        elif death.moment == "upload" and callable(data):
            write(self, path, lambda: _cut(data, die))
        elif death.moment == "manifest" and name.endswith("/manifest.json"):
            die()
        else:
            write(self, path, data)
            if (death.moment == "rows" and folder == "metrics") or (
                death.moment == "committed" and name.endswith("/manifest.json")
            ):
                die()

    Storage.write = watched  # type: ignore[method-assign]


def _cut(data: Callable[[], Iterator[Any]], die: Callable[[], None]) -> Iterator[Any]:
    pieces = data()
    yield next(pieces)
    piece = next(pieces)
    yield piece[: len(piece) // 2]
    die()
