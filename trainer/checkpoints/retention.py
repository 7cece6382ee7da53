"""Which commits are kept, and what dead attempts have left behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer.checkpoints.lineage import Commit, Lineage
from trainer.errors import TrainingError

if TYPE_CHECKING:
    from trainer.checkpoints.checkpointer import CheckpointConfig


def forget_old(lineage: Lineage, attempt: int, config: CheckpointConfig, scores: dict[Commit, float | None]) -> None:
    """Delete what need not be kept, as attempt number `attempt`, none of whose checkpoints is on its way.

    `scores`: the bound on the held-out set in nats, as far as it is known; what is not is read and put in.
    Nothing happens if a newer attempt has begun: it may be reading.
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
            lineage.delete_commit(commit)


def kept_of(history: list[Commit], config: CheckpointConfig, scores: dict[Commit, float | None]) -> set[Commit | None]:
    """The commits of a lineage, the newest first, that are to be kept."""
    kept: set[Commit | None] = set(history[: max(config.keep, 2)])
    scored = sorted((score, commit) for commit in history if (score := scores.get(commit)) is not None)
    kept |= {commit for _, commit in scored[: config.keep_best]}
    if config.keep_every:
        first: dict[int, Commit] = {}
        for commit in history:  # the newest first, so that the oldest stays
            first[commit.images // config.keep_every] = commit
        kept |= {commit for number, commit in first.items() if number > 0}
    return kept


def _score(lineage: Lineage, commit: Commit) -> float | None:
    try:
        return lineage.manifest(commit).facts.get("validation/nats")
    except TrainingError:  # damaged: whoever loads will say so
        return None
