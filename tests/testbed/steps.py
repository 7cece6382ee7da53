"""A rank that trains a run for some steps and is then asked to stop."""

from __future__ import annotations

from pathlib import Path

from jobs.config.loading import load_config
from jobs.run.training import train_rank
from trainer.distributed.requests import Requests


class StopAfter(Requests):
    """Requests a stop after so many steps; the loop asks for saves exactly once a step."""

    def __init__(self, steps: int):
        self.left = steps

    def save(self) -> bool:
        self.left -= 1
        return False

    def stop(self) -> bool:
        return self.left <= 0


def train(config: str | Path, steps: int | None = None, *overrides: str, requests: Requests | None = None) -> None:
    """Train the run of a configuration file; stop after `steps` if given, or when `requests` ask for it."""
    never = 1 << 60
    train_rank(load_config(str(config), overrides), requests or StopAfter(steps or never))
