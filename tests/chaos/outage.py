"""W&B that is away while a run goes on, is killed and ends: it lacks nothing in the end, and has nothing twice."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from cluster.storage.storage import Storage
from tests.chaos.checks import problems, steps_of
from tests.chaos.matrix import Bench, Result, ranks_name
from tests.chaos.rank import Death
from tests.chaos.runs import BATCH, Launch, logs
from tests.testbed.processes import wait_until
from tests.testbed.wandb_server import WandbServer
from trainer.checkpoints.journal import read_metrics


def tracker_outage(bench: Bench, server: WandbServer, ranks: int, until_the_end: bool) -> Result:
    """The server fails from the sixth step on; the run is killed and started again while it does.

    With `until_the_end` it is well again only after the run has finished, which the same command then notices.
    """
    reference, began = bench.reference(ranks), time.monotonic()
    config, folder = bench.new("wandb", tracking={"mode": "online", "project": "chaos"})
    wrong: list[str] = []

    def start(**options: Any) -> Launch:
        return Launch(config, folder, ranks, environment=server.environment, **options)

    def trained(steps: int) -> None:
        wait_until(lambda: any(s.images >= steps * BATCH for s in steps_of(folder)), 300, f"step {steps}")

    refused = server.refused
    launch = start(death=Death("step", 16 * BATCH), pace=0.1)
    trained(6)
    server.failing = 503
    killed = launch.wait()
    if not any(status < 0 for status in killed):
        wrong.append(f"{folder.name}: was not killed but ended with {killed}")
    launch = start(pace=0.1)
    if not until_the_end:
        trained(22)
        server.failing = None
    if (status := launch.wait()) != [0] * ranks:
        wrong.append(f"{folder.name}: ended with {status}: {logs(folder)[-300:]}")
    server.failing = None
    if start().wait() != [0] * ranks:
        wrong.append(f"{folder.name}: the same command failed: {logs(folder)[-300:]}")
    wrong += [f"{folder.name}: {problem}" for problem in problems(str(folder / "run"), folder, reference)]
    wrong += [f"{folder.name}: {problem}" for problem in _differences(folder / "run", server)]
    name = "W&B away from a kill until after the end" if until_the_end else "W&B away for a while, and a kill"
    return Result(ranks_name(ranks), name, 1, server.refused - refused, wrong, time.monotonic() - began)


def _differences(run: Path, server: WandbServer) -> list[str]:
    """In what the rows of W&B are not those of the lineage."""
    rows = server.rows((run / "wandb-id").read_text())
    wanted = read_metrics(Storage(str(run)))
    found = []
    if [row["images"] for row in rows] != [row["images"] for row in wanted]:
        found.append(f"W&B has rows at {[row['images'] for row in rows]}, not at {[row['images'] for row in wanted]}")
    for mine, other in zip(rows, wanted, strict=False):
        numbers = [name for name, value in other.items() if isinstance(value, int | float)]
        figures = [name for name in numbers if name.startswith(("train/", "validation/"))]
        if any(abs(mine.get(name, 1e9) - other[name]) > 1e-9 * max(abs(other[name]), 1) for name in figures):
            found.append(f"W&B has other figures at {other['images']}")
    return found
