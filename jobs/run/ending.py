"""How a run ends: final/, the folder of its weights, and the last lines of its log.

<run>/final/model.safetensors, config.json         the averaged weights at the end, and what they are
<run>/final/best/model.safetensors, config.json    those of the best evaluation, if that was another one
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from cluster.storage.storage import Storage, join
from jobs.config.resolved import resolve
from jobs.config.resume import check_same_run
from jobs.config.schema import RunConfig
from jobs.run.trackers import catch_up
from trainer.checkpoints.bounds import Best
from trainer.checkpoints.export import BEST, CONFIG, FINAL, best_commit, description_of, weights_at, write_model
from trainer.checkpoints.lineage import Lineage
from trainer.distributed.ranks import on_rank_zero
from trainer.errors import TrainingError
from trainer.tracking.display import say_on_rank_zero
from trainer.training.loop import Outcome, out_of_patience


def write_final(
    lineage: Lineage,
    outcome: Outcome,
    facts: dict[str, Any],
    last: dict[str, Tensor],
    tokenizers: Mapping[str, str],
) -> None:
    """Write final/: the averaged weights `last` with the `facts` that describe them, and in best/ those of the best
    evaluation, if it was an earlier one whose commit was kept.
    """
    folder, best = lineage.run.folder(FINAL), outcome.best
    facts = facts | {"images_seen": outcome.images, "weights": "ema", "early": outcome.early}
    facts["best"] = best and best._asdict()
    if best is not None and best.images != outcome.images:
        try:
            commit = best_commit(lineage)
            _, tensors = weights_at(lineage, commit, BEST)
        except TrainingError as error:
            say_on_rank_zero(f"warning: {error}")
            facts["best"] = None
        else:
            own = {"images_seen": best.images, "weights": BEST, "commit": commit.name}
            write_model(folder.folder(BEST), facts | own, tensors, tokenizers)
    else:  # of an earlier end
        for name in ("config.json", "model.safetensors"):
            folder.delete(f"{BEST}/{name}")
    write_model(folder, facts, last, tokenizers)


def finished(config: RunConfig) -> Outcome | None:
    """The outcome of a run that has nothing left to train; None where there is something to do.

    Raises TrainingError if the run folder is another run's.
    """
    run = Storage(config.run)
    facts = _final_facts(run)
    if facts is None:
        return None
    resolved = resolve(config)
    check_same_run(resolved, facts["fingerprint"])  # on a driver, whose precision is not the ranks'
    best = Best(*(facts["best"][name] for name in Best._fields)) if facts.get("best") else None
    if resolved.held_out is None or facts.get("validation_set") != resolved.held_out.fingerprint:
        best = None  # bounds on another set say nothing
    images: int = facts["images_seen"]
    early = images < config.trainer.images
    if early and not (facts.get("early") and best and out_of_patience(best, config.trainer)):
        return None  # extended
    outcome = Outcome(images, True, None, best, early)
    on_rank_zero(lambda: catch_up(config, run))
    say_on_rank_zero(f"{config.run} is finished: {images:,} images seen{ending(outcome, config, run)}")
    return outcome


def _final_facts(run: Storage) -> dict[str, Any] | None:
    """What final/ says of a finished run; None if there is none, or if it must be written again."""
    if not run.exists(f"{FINAL}/{CONFIG}"):
        return None
    try:
        facts = description_of(run.folder(FINAL))
        if facts.get("images_seen") is None or facts.get("fingerprint") is None:
            raise TrainingError(f"{run.url}: {FINAL}/{CONFIG} does not say what was trained")
    except TrainingError as error:
        say_on_rank_zero(f"warning: {error}; it is written again from the newest checkpoint")
        return None
    return facts


def ending(outcome: Outcome, config: RunConfig, run: Storage) -> str:
    """What follows "finished": why before the budget, the best evaluation, and where to look."""
    text = ""
    if outcome.early:
        text = f" of {config.trainer.images:,}: trainer.patience is {config.trainer.patience}; a larger one continues"
    if outcome.best is not None:
        other = " (--weights best)" if outcome.best.images != outcome.images else ""
        text += f"; validation: {outcome.best}{other}"
    pictures = [entry.path for entry in run.list("pictures") if "/samples-" in entry.path]
    samples = f"Samples: {join(run.url, pictures[-1])}. " if pictures else ""
    return f"{text}. {samples}Weights: {join(run.url, FINAL)}. {report_command(run)}"


def report_command(run: Storage) -> str:
    """How to look at a run."""
    return f"Report: python -m jobs.report {shlex.quote(run.url)} --out report.html"
