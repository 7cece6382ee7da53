"""Where the driver and the ranks of a Ray job leave word for one another."""

from __future__ import annotations

import threading
import time

import ray
from ray.actor import ActorHandle

POLL_SECONDS = 0.5


@ray.remote(num_cpus=0)
class ControlActor:
    """Holds the wishes to stop and to save (driver to ranks), how many ranks there are and what a person must mend
    (ranks to driver).
    """

    def __init__(self) -> None:
        self.stop = False
        self.saves = 0  # how often a save has been asked for
        self.ranks = 0  # that train now
        self.failure: Exception | None = None

    def request_stop(self) -> None:
        """Every rank is to commit and leave."""
        self.stop = True

    def request_save(self) -> None:
        """The ranks are to commit soon, and go on."""
        self.saves += 1

    def asked(self) -> tuple[bool, int]:
        """Whether to stop, and how often a save has been asked for."""
        return self.stop, self.saves

    def report_ranks(self, ranks: int) -> None:
        """So many ranks begin to train."""
        self.ranks = ranks

    def reported_ranks(self) -> int:
        return self.ranks

    def report_failure(self, failure: Exception) -> None:
        """The run cannot go on until somebody mends it; the first word counts."""
        self.failure = self.failure or failure

    def reported_failure(self) -> Exception | None:
        return self.failure


class ControlPoller:
    """What the driver asks of a rank: a thread looks at the desk now and then, so that the loop never waits for it."""

    def __init__(self, desk: ActorHandle):
        self.stop = False
        self.saves = 0  # asked for and not yet taken
        threading.Thread(target=self._watch, args=(desk,), daemon=True).start()

    def should_stop(self) -> bool:
        return self.stop

    def should_save(self) -> bool:
        """True once for every request."""
        wanted, self.saves = self.saves > 0, 0
        return wanted

    def _watch(self, desk: ActorHandle) -> None:
        taken: int | None = None
        asked: int
        while not self.stop:
            try:
                self.stop, asked = ray.get(desk.asked.remote())
            except ray.exceptions.RayError:  # the driver is gone, and the desk with it
                return
            self.saves += asked - (asked if taken is None else taken)
            taken = asked
            time.sleep(POLL_SECONDS)
