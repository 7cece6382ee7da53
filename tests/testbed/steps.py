"""A rank that trains a run for so many steps and then wants to stop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from jobs.config.schema import load_config
from jobs.run.training import work


class StopAfter:
    """`should_stop` that says yes at the n-th question and from then on."""

    def __init__(self, steps: int):
        self.left = steps

    def __call__(self) -> bool:
        self.left -= 1
        return self.left <= 0


def train(
    config: str | Path, steps: int | None = None, *overrides: str, stop: Callable[[], bool] | None = None
) -> None:
    """Train the run of a configuration file; stop after `steps` if given, or when `stop` (asked each step) says so."""
    never = 1 << 60
    work(load_config(str(config), overrides), should_stop=stop or StopAfter(steps or never))
