"""Which commits are kept; incomplete checkpoints of dead attempts are removed with the others."""

from __future__ import annotations

from pydantic import NonNegativeInt, PositiveInt

from trainer.checkpoints.bounds import Bounds
from trainer.checkpoints.commit import Commit
from trainer.checkpoints.lineage import Lineage
from trainer.config import Config


class CheckpointConfig(Config):
    """Which checkpoints are kept. The newest, and the one that the newest attempt started from, always are."""

    keep: PositiveInt = 2
    """Number of newest checkpoints kept; at least two are."""
    keep_best: NonNegativeInt = 1
    """Number of checkpoints kept for their bound on the held-out set, the lowest first. Only bounds on the same set are
    compared. Unless 0, an evaluation that is the best so far is followed by a checkpoint: `--weights best`."""
    keep_every: NonNegativeInt = 0
    """Keep the first checkpoint at or after each multiple of this many images for good; 0: none."""


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
