"""The bounds of a run on its held-out set, over its evaluations: which is the best, and how many came after it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from trainer.checkpoints.commit import Commit
from trainer.checkpoints.journal import Row


class Best(NamedTuple):
    """The evaluation with the lowest negative bound."""

    images: int  # seen when it was made
    nats: float  # an image
    since: int  # evaluations after it, none of which is lower

    def __str__(self) -> str:
        risen = f", risen for {self.since} evaluation{'s' * (self.since > 1)}" if self.since else ""
        return f"best {self.nats:.2f} nats after {self.images:,} images{risen}"


def is_evaluation(row: Row) -> bool:
    """Whether a row of metrics is that of an evaluation, or of its pictures alone where there is no held-out set."""
    return "evaluation/seconds" in row or "validation/nats" in row


class Bounds:
    """The negative bounds of a run's averaged weights by image count; those on another set than the last one do not
    count.
    """

    def __init__(self, rows: Iterable[Row] = ()):
        """`rows` of metrics, of the newest lineage."""
        self._nats: dict[int, float] = {}  # infinite: the evaluation was not finite
        self.set: str | None = None
        """Fingerprint of the held-out set."""
        self.add(rows)

    def add(self, rows: Iterable[Row]) -> None:
        """More rows, later ones."""
        for row in rows:
            if "validation/nats" not in row:
                continue
            name = row.get("validation/set", self.set)
            if name != self.set:
                self.set, self._nats = name, {}
            nats = row["validation/nats"]
            self._nats[row["images"]] = nats if math.isfinite(nats) else math.inf

    def of(self, commit: Commit) -> float | None:
        """The finite negative bound, nats an image, of the averaged weights of a commit; None if there is none."""
        nats = self._nats.get(commit.images, math.inf)
        return nats if math.isfinite(nats) else None

    @property
    def best(self) -> Best | None:
        """The lowest finite one, the first of several equal ones; None before the first evaluation."""
        finite = [(nats, images) for images, nats in self._nats.items() if math.isfinite(nats)]
        if not finite:
            return None
        nats, images = min(finite)
        return Best(images, nats, sum(other > images for other in self._nats))
