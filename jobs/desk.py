"""Where the driver and the ranks of a Ray job leave word for one another."""

from __future__ import annotations

import threading
import time

import ray
from ray.actor import ActorHandle

POLL_SECONDS = 0.5


@ray.remote(num_cpus=0)
class Desk:
    """Holds the wish to stop (driver to ranks) and what a person must mend (ranks to driver)."""

    def __init__(self) -> None:
        self.stop = False
        self.failure: Exception | None = None

    def ask_to_stop(self) -> None:
        """Every rank is to commit and leave."""
        self.stop = True

    def asked_to_stop(self) -> bool:
        return self.stop

    def report_failure(self, failure: Exception) -> None:
        """The run cannot go on until somebody mends it; the first word counts."""
        self.failure = self.failure or failure

    def reported_failure(self) -> Exception | None:
        return self.failure


class StopFromDesk:
    """`should_stop` of a rank: a thread asks the desk now and then, so that the loop never waits for the answer."""

    def __init__(self, desk: ActorHandle):
        self.asked = False
        threading.Thread(target=self._watch, args=(desk,), daemon=True).start()

    def _watch(self, desk: ActorHandle) -> None:
        while not self.asked:
            try:
                self.asked = bool(ray.get(desk.asked_to_stop.remote()))
            except ray.exceptions.RayError:  # the driver is gone, and the desk with it
                return
            time.sleep(POLL_SECONDS)

    def __call__(self) -> bool:
        return self.asked
