"""A Ray job whose ranks suffer faults: `python -m tests.chaos.under_ray PLAN.json`, which else is jobs.train."""

from __future__ import annotations

import functools
import json
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

from tests.chaos.rank import Death, prepare, trace


class Plan(NamedTuple):
    """What the driver is told."""

    config: str
    overrides: list[str]
    folder: str  # for traces and marks
    deaths: list[Death]  # one after another, whatever number of times the ranks are started
    pace: float = 0.0  # seconds that a step takes longer

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(self))

    @classmethod
    def read(cls, path: Path) -> Plan:
        config, overrides, folder, deaths, pace = json.loads(path.read_text())
        return cls(config, overrides, folder, [Death(*death) for death in deaths], pace)

    def mark(self, number: int) -> Path:
        """The file that death number `number` leaves, with the time of it."""
        return Path(self.folder) / f"died-{number}"


def rank_with_faults(plan: Plan, settings: dict[str, Any]) -> None:
    """What each worker runs: a rank that notes what it trains and dies as planned."""
    import ray.train

    from jobs.ray import driver

    context = ray.train.get_context()
    me = context.get_world_rank()
    trace(plan.folder, me, plan.pace)
    for number, death in enumerate(plan.deaths):
        if not plan.mark(number).exists():
            if death.rank % context.get_world_size() == me:
                prepare(death, plan.mark(number))
            break
    driver._rank(settings)


def main() -> None:
    from jobs import cli, train
    from jobs.ray import cluster

    os.environ.update({name: value for name, value in cluster.START_TIMEOUT.items() if name not in os.environ})
    from jobs.ray import driver

    plan = Plan.read(Path(sys.argv[1]))
    driver._rank = functools.partial(rank_with_faults, plan)  # type: ignore[assignment]
    sys.argv = ["train", plan.config, *plan.overrides]
    cli.run(train.main)


if __name__ == "__main__":
    from tests.chaos import under_ray  # by its own name, so that workers can import what the driver sends them

    under_ray.main()
