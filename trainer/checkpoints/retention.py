"""Which commits are kept; incomplete checkpoints of dead attempts are removed with the others."""

from __future__ import annotations

from pydantic import NonNegativeInt, PositiveInt

from trainer.checkpoints.commit import Commit
from trainer.checkpoints.lineage import Lineage
from trainer.config import Config
from trainer.errors import TrainingError


class CheckpointConfig(Config):
    """Which checkpoints are kept. The newest, and the one that the newest attempt started from, always are."""

    keep: PositiveInt = 2
    """Number of newest checkpoints kept; at least two are."""
    keep_best: NonNegativeInt = 1
    """Number of checkpoints kept for their bound on the held-out set, the lowest first. Only bounds on the same set are
    compared."""
    keep_every: NonNegativeInt = 0
    """Keep the first checkpoint at or after each multiple of this many images for good; 0: none."""


def delete_old(lineage: Lineage, attempt: int, config: CheckpointConfig, scores: dict[Commit, float | None]) -> None:
    """Delete what need not be kept, on behalf of attempt number `attempt`, none of whose checkpoints is being written.

    `scores`: the bound on the held-out set in nats of the commits known so far; missing ones are read and added.
    Nothing is deleted if a newer attempt has begun: it may be reading.
    """
    history = list(lineage.history())
    orphans, commits = lineage.orphans(), lineage.commits()
    newest = lineage.newest_attempt()
    if newest != attempt:
        return
    for commit in history:
        if commit not in scores:
            scores[commit] = _score(lineage, commit)
    kept = kept_of(history, config, scores) | {lineage.attempts()[newest].start}
    for commit in sorted(commits - kept) + sorted(orphans):
        if commit.attempt <= attempt:
            lineage.folder(commit).delete()


def kept_of(history: list[Commit], config: CheckpointConfig, scores: dict[Commit, float | None]) -> set[Commit | None]:
    """The commits to keep of a history (newest first)."""
    kept: set[Commit | None] = set(history[: max(config.keep, 2)])
    scored = sorted((score, commit) for commit in history if (score := scores.get(commit)) is not None)
    kept |= {commit for _, commit in scored[: config.keep_best]}
    if config.keep_every:
        first: dict[int, Commit] = {}
        for commit in history:  # newest first, so the oldest of each multiple remains
            first[commit.images // config.keep_every] = commit
        kept |= {commit for number, commit in first.items() if number > 0}
    return kept


def _score(lineage: Lineage, commit: Commit) -> float | None:
    try:
        score: float | None = lineage.folder(commit).manifest().facts.get("validation/nats")
    except TrainingError:  # damaged: reported when it is loaded
        return None
    return score
