"""Runs of one or two ranks in processes that fork from one that has everything imported: a start costs little."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.chaos.rank import Death, Life, live
from tests.testbed.forks import context
from tests.testbed.processes import free_ports

BATCH = 64
STEPS = 40
GRACE = 20.0  # seconds from the death of a rank to the SIGKILL of the other; torchrun gives 30


def write_config(path: Path, digits: Path, run: str, **sections: dict[str, Any]) -> None:
    """A run of 40 steps of 64 images of a tiny VAE with a checkpoint every 4, with sections laid over it."""
    network = {"kind": "mlp", "hidden": [32]}
    shown = {"threads": 1, "pictures": 4, "log_every": 2 * BATCH, "evaluate_every": 20 * BATCH}
    values: dict[str, Any] = {
        "run": run,
        "model": {"kind": "vae", "latent": 4, "encoder": network, "decoder": network},
        "data": {"shards": str(digits / "train"), "validation": str(digits / "validation"), "streams": 4},
        "optim": {"lr": 0.002, "schedule": "cosine", "ema": 500},
        "trainer": shown | {"images": STEPS * BATCH, "batch": BATCH, "checkpoint_every": 4 * BATCH},
        "tracking": {"mode": "off"},
    }
    for section, content in sections.items():
        values[section] = values[section] | content
    path.write_text(yaml.safe_dump(values))


class Launch:
    """One start of a run on so many ranks, ended as torchrun ends it: when one rank fails, all go."""

    def __init__(
        self,
        config: Path,
        folder: Path,
        ranks: int = 1,
        death: Death | None = None,
        overrides: Sequence[str] = (),
        environment: dict[str, str] | None = None,
        file_limit: int | None = None,
        pace: float = 0.0,
    ):
        (port,) = free_ports(1)
        given = tuple((environment or {}).items())
        lives = [
            Life(str(config), tuple(overrides), rank, ranks, port, str(folder), death, given, file_limit, pace)
            for rank in range(ranks)
        ]
        self.processes = [context.Process(target=live, args=(life,)) for life in lives]
        for process in self.processes:
            process.start()

    def wait(self, timeout: float = 300.0) -> list[int]:
        """The exit status of every rank; negative: the signal that ended it. After `timeout` all are killed."""
        deadline = time.monotonic() + timeout
        killed = None
        while any(process.exitcode is None for process in self.processes):
            now = time.monotonic()
            if killed is None and any(process.exitcode not in (None, 0) for process in self.processes):
                self.signal(signal.SIGTERM)
                killed = now
            if now > deadline or (killed is not None and now > killed + GRACE):
                self.signal(signal.SIGKILL)
            time.sleep(0.005)
        return [process.exitcode for process in self.processes]

    def signal(self, number: int) -> None:
        """Send a signal to all ranks that live."""
        for process in self.processes:
            if process.exitcode is None:
                with contextlib.suppress(ProcessLookupError):  # it has just ended, and the fork server tells it later
                    os.kill(process.pid, number)


def logs(folder: Path) -> str:
    """What all ranks have printed."""
    return "\n".join(path.read_text(errors="replace") for path in sorted(folder.glob("log-*.txt")))
