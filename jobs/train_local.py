"""Train on this machine without Ray: one process, or as many as torchrun starts.

python -m jobs.train_local CONFIG [key=value ...]
torchrun --nproc-per-node 2 -m jobs.train_local CONFIG [key=value ...]
"""

from __future__ import annotations

import argparse
import signal
from collections.abc import Sequence
from types import FrameType

from jobs.cli import run
from jobs.config.schema import load_config
from jobs.run.training import work


class StopOnSignal:
    """Inside the block notes SIGINT, SIGTERM and SIGUSR1 (Slurm's notice); a second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> StopOnSignal:
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
        self.before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *failure: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True

    def __call__(self) -> bool:
        return self.asked


def main(arguments: Sequence[str]) -> int | None:
    """Train; 0 also after a stop that was asked for and committed."""
    parser = argparse.ArgumentParser(prog="python -m jobs.train_local", description="Train on this machine.")
    parser.add_argument("config", help="YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="dotted overrides, optim.lr=1e-4")
    parsed = parser.parse_args(arguments)
    config = load_config(parsed.config, parsed.overrides)
    with StopOnSignal() as should_stop:
        work(config, should_stop)
    return 0


if __name__ == "__main__":
    run(main)
