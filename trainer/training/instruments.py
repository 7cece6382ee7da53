"""What watches the steps of a run: progress display, watchdog, profiler, garbage collection."""

from __future__ import annotations

import contextlib
from typing import Self

from cluster.storage.storage import Storage
from trainer.distributed.garbage import GarbageCollection
from trainer.distributed.watchdog import Watchdog
from trainer.tracking.display import Display, say_on_rank_zero
from trainer.tracking.profiling import Profiler
from trainer.training.config import TrainerConfig


class Instruments:
    """All of them as one context; `step` is cheap and asks nothing of the device."""

    def __init__(self, config: TrainerConfig, run: Storage, images: int):
        self.display = Display(config.images, images)
        self.watchdog = Watchdog(config.hang_timeout)
        self.profiler = Profiler(run, config.profile, say_on_rank_zero)
        self.garbage = GarbageCollection()
        self._exits = contextlib.ExitStack()

    def step(self, images: int) -> None:
        """A step has been taken, the last one of `images` images."""
        self.watchdog.beat()
        self.profiler.step(images)
        self.garbage.step()
        self.display.tick(images)

    def __enter__(self) -> Self:
        for instrument in (self.display, self.watchdog, self.profiler, self.garbage):
            self._exits.enter_context(instrument)
        return self

    def __exit__(self, *failure: object) -> None:
        self._exits.close()
