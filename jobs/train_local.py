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
from jobs.config import load_config
from jobs.worker import work


class StopOnSignal:
    """Notes SIGINT, SIGTERM and SIGUSR1 (Slurm's notice); a second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._note)

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
    work(config, should_stop=StopOnSignal())
    return 0


if __name__ == "__main__":
    run(main)
