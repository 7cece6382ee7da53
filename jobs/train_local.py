"""Train on this machine without Ray: one process, or the ranks that torchrun starts.

python -m jobs.train_local CONFIG [key=value ...]
torchrun --nproc-per-node 2 -m jobs.train_local CONFIG [key=value ...]
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from types import FrameType

from jobs.cli import config_parser, run
from jobs.config.loading import load_config
from jobs.run.training import train_rank
from trainer.distributed.requests import Requests


class StopOnSignal(Requests):
    """Inside the block SIGINT, SIGTERM, SIGHUP and SIGUSR1 (Slurm's notice) request a stop; a second Ctrl-C interrupts
    at once.
    """

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> StopOnSignal:
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
        self.before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *failure: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True

    def stop(self) -> bool:
        return self.requested


def main(arguments: Sequence[str]) -> int | None:
    """Train; exit code 0 also after a requested stop, which commits."""
    parser = config_parser("train_local", __doc__)
    parsed = parser.parse_args(arguments)
    config = load_config(parsed.config, parsed.overrides)
    with StopOnSignal() as requests:
        train_rank(config, requests)
    return 0


if __name__ == "__main__":
    run(main)
