"""The control actor of a Ray job: relays requests to stop and save, and fatal errors, between driver and ranks."""

from __future__ import annotations

import threading
import time
from typing import Any

import ray
from ray.actor import ActorHandle

POLL_SECONDS = 0.5


@ray.remote(num_cpus=0)
class ControlActor:
    """Relays requests to stop and to save (driver to ranks), the number of ranks and fatal errors (ranks to driver)."""

    def __init__(self) -> None:
        self.stop = False
        self.saves = 0  # requests so far
        self.ranks = 0  # training now
        self.failure: Exception | None = None

    def request_stop(self) -> None:
        """Make every rank commit and exit."""
        self.stop = True

    def request_save(self) -> None:
        """Make the ranks commit soon, and continue."""
        self.saves += 1

    def requests(self) -> tuple[bool, int]:
        """Whether to stop, and how many saves were requested so far."""
        return self.stop, self.saves

    def report_ranks(self, ranks: int) -> None:
        """`ranks` ranks start training."""
        self.ranks = ranks

    def reported_ranks(self) -> int:
        return self.ranks

    def report_failure(self, failure: Exception) -> None:
        """A user error ends the run; the first one counts."""
        self.failure = self.failure or failure

    def reported_failure(self) -> Exception | None:
        return self.failure


class ControlPoller:
    """The driver's requests, polled by a thread, so that the training loop never waits for the actor."""

    def __init__(self, control: ActorHandle[Any]):
        self.stop = False
        self.saves = 0  # requested and not taken yet
        threading.Thread(target=self._watch, args=(control,), daemon=True).start()

    def take_save(self) -> bool:
        """Whether a save was requested since the last call."""
        wanted, self.saves = self.saves > 0, 0
        return wanted

    def _watch(self, control: ActorHandle[Any]) -> None:
        taken: int | None = None
        asked: int
        while not self.stop:
            try:
                self.stop, asked = ray.get(control.requests.remote())
            except ray.exceptions.RayError:  # the driver is gone, and the actor with it
                return
            self.saves += asked - (asked if taken is None else taken)
            taken = asked
            time.sleep(POLL_SECONDS)
