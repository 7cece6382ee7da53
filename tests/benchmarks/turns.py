"""Systems that take steps by turns, each in a process of its own, so that what else the machine does hits them alike.

A system serves: it is told numbers of steps on its standard input and answers with what they took, JSON lines on its
standard output. Nothing but Python is imported here: the systems may run under different environments.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from trainer.distributed.requests import Requests


class Served:
    """The serving side. Whatever the system prints goes to standard error."""

    def __init__(self) -> None:
        self.answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def say(self, **facts: Any) -> None:
        print(json.dumps(facts), file=self.answers, flush=True)

    def asked(self) -> int | None:
        """The number of steps of the next turn; None at the end."""
        line = sys.stdin.readline()
        return int(line) if line.strip() else None

    def serve(self, steps: Callable[[int], object], **facts: Any) -> None:
        """Tell the facts, then take turns until the end."""
        self.say(**facts)
        while (count := self.asked()) is not None:
            wall, cpu = time.perf_counter(), time.process_time()
            steps(count)
            self.say(wall=time.perf_counter() - wall, cpu=time.process_time() - cpu)

    def between_steps(self, **facts: Any) -> BetweenSteps:
        """The same for our own loop, which asks for requests after every step."""
        return BetweenSteps(self, facts)


class BetweenSteps(Requests):
    """Takes turns where the loop asks whether to save, which it does exactly once a step."""

    def __init__(self, served: Served, facts: dict[str, Any]):
        self.served, self.facts = served, facts
        self.left, self.wall, self.cpu = 1, 0.0, 0.0

    def save(self) -> bool:
        self.left -= 1
        if not self.left:
            took = {"wall": time.perf_counter() - self.wall, "cpu": time.process_time() - self.cpu}
            self.served.say(**(took if self.wall else self.facts))
            self.left = self.served.asked() or 0
            self.wall, self.cpu = time.perf_counter(), time.process_time()
        return False

    def stop(self) -> bool:
        return not self.left


def compared(systems: Sequence[System], warm_up: int, rounds: int, steps: int, clock: str) -> list[list[float]]:
    """Seconds a step ("wall" or "cpu") of every system in every round; who begins a round alternates."""
    for system in systems:
        system.take(warm_up)
    table = []
    for number in range(rounds):
        order = systems if number % 2 else systems[::-1]
        took = {id(system): system.take(steps)[clock] / steps for system in order}
        table.append([took[id(system)] for system in systems])
    for system in systems:
        system.end()
    return table


class System:
    """The asking side: a system in its process."""

    def __init__(self, command: Sequence[str]):
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.facts = self._answer()

    def take(self, steps: int) -> dict[str, float]:
        """Seconds of the wall and of the CPU (all threads) that so many steps took."""
        assert self.process.stdin is not None
        print(steps, file=self.process.stdin, flush=True)
        return self._answer()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            _, told = self.process.communicate()
            raise RuntimeError(f"{' '.join(map(str, self.process.args))}: {told[-2000:]}")  # type: ignore[arg-type]
        return json.loads(line)
