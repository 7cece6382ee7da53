"""Garbage collection at chosen steps.

Python's own collections start at different steps on different ranks, and each rank then waits for every other one. As
torchtitan does, they are made by hand instead, on all ranks at the same step.
"""

from __future__ import annotations

import gc
from typing import Self

EVERY = 200  # steps


class GarbageCollection:
    """Inside the block only `step` collects, once in `every` steps; the objects alive at its start are not scanned."""

    def __init__(self, every: int = EVERY):
        self.every, self.steps = every, 0

    def __enter__(self) -> Self:
        gc.collect()
        gc.freeze()  # what is alive now (modules, model) stays; a collection then takes milliseconds
        gc.disable()
        return self

    def step(self) -> None:
        """Call once a training step."""
        self.steps += 1
        if self.steps % self.every == 0:
            gc.collect()

    def __exit__(self, *error: object) -> None:
        gc.enable()
        gc.unfreeze()
