"""A rank that trains a run for so many steps and then wants to stop: python -m tests.testbed.steps CONFIG STEPS ..."""

from __future__ import annotations

import sys

from jobs.config import load_config
from jobs.worker import work


class StopAfter:
    """`should_stop` that says yes at the n-th question and from then on."""

    def __init__(self, steps: int):
        self.left = steps

    def __call__(self) -> bool:
        self.left -= 1
        return self.left <= 0


if __name__ == "__main__":
    work(load_config(sys.argv[1], sys.argv[3:]), should_stop=StopAfter(int(sys.argv[2])))
