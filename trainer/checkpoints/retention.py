"""Which commits are kept; incomplete checkpoints of dead attempts are removed with the others."""

from __future__ import annotations

import math
from collections.abc import Iterable

from pydantic import NonNegativeInt, PositiveInt

from trainer.checkpoints.commit import Commit
from trainer.checkpoints.journal import Row
from trainer.checkpoints.lineage import Lineage
from trainer.config import Config


class CheckpointConfig(Config):
    """Which checkpoints are kept. The newest, and the one that the newest attempt started from, always are."""

    keep: PositiveInt = 2
    """Number of newest checkpoints kept; at least two are."""
    keep_best: NonNegativeInt = 1
    """Number of checkpoints kept for their bound on the held-out set, the lowest first. Only bounds on the same set are
    compared."""
    keep_every: NonNegativeInt = 0
    """Keep the first checkpoint at or after each multiple of this many images for good; 0: none."""


class Bounds:
    """The finite bounds of a run on its held-out set, by image count; those on another set than the last one do not
    count."""

    def __init__(self, rows: Iterable[Row] = ()):
        """`rows` of metrics, of the newest lineage."""
        self._nats: dict[int, float] = {}
        self._set: str | None = None
        self.add(rows)

    def add(self, rows: Iterable[Row]) -> None:
        """More rows, later ones."""
        for row in rows:
            if "validation/nats" not in row:
                continue
            name = row.get("validation/set", self._set)
            if name != self._set:
                self._set, self._nats = name, {}
            if math.isfinite(row["validation/nats"]):
                self._nats[row["images"]] = row["validation/nats"]

    def of(self, commit: Commit) -> float | None:
        """The negative bound, nats an image, of the averaged weights of a commit; None if it was not evaluated."""
        return self._nats.get(commit.images)


def delete_old(lineage: Lineage, attempt: int, config: CheckpointConfig, bounds: Bounds) -> None:
    """Delete what need not be kept, on behalf of attempt number `attempt`, none of whose checkpoints is being written.

    Nothing is deleted if a newer attempt has begun: it may be reading.
    """
    history = list(lineage.history())
    orphans, commits = lineage.orphans(), lineage.commits()
    newest = lineage.newest_attempt()
    if newest != attempt:
        return
    kept = kept_of(history, config, bounds) | {lineage.attempts()[newest].start}
    for commit in sorted(commits - kept) + sorted(orphans):
        if commit.attempt <= attempt:
            lineage.folder(commit).delete()


def kept_of(history: list[Commit], config: CheckpointConfig, bounds: Bounds) -> set[Commit | None]:
    """The commits to keep of a history (newest first)."""
    kept: set[Commit | None] = set(history[: max(config.keep, 2)])
    scored = sorted((nats, commit) for commit in history if (nats := bounds.of(commit)) is not None)
    kept |= {commit for _, commit in scored[: config.keep_best]}
    if config.keep_every:
        first: dict[int, Commit] = {}
        for commit in history:  # newest first, so the oldest of each multiple remains
            first[commit.images // config.keep_every] = commit
        kept |= {commit for number, commit in first.items() if number > 0}
    return kept
