"""The training loop: the same for every model, on one process or many.

It knows `Elbo`, batches and events, and nothing else of a model. Progress is counted in images: step k takes the
positions [kB, (k+1)B) of the global order, B being the global batch, whatever the number of ranks.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

import torch

from trainer.checkpoints.bounds import Best
from trainer.checkpoints.checkpointer import Checkpointer
from trainer.checkpoints.journal import Row
from trainer.checkpoints.snapshots import take_snapshots
from trainer.conditions import in_words
from trainer.distributed.ranks import world_size
from trainer.distributed.requests import Agreement, Requests
from trainer.distributed.sharding import gathered
from trainer.distributed.stragglers import memory_row
from trainer.distributed.watchdog import Watchdog
from trainer.models.base import Model, condition
from trainer.noise import Noise
from trainer.tracking.display import say_on_rank_zero
from trainer.tracking.pictures import draw
from trainer.tracking.plots import bars
from trainer.tracking.prompt_rows import draw_prompts
from trainer.training.config import TrainerConfig
from trainer.training.data import Batch, Data, keep_first, split
from trainer.training.evaluation import Evaluation, evaluate
from trainer.training.events import Events
from trainer.training.instruments import Instruments
from trainer.training.metrics import Clock
from trainer.training.state import TrainState

if TYPE_CHECKING:
    from accelerate import Accelerator


class Outcome(NamedTuple):
    """How a call of `fit` ended."""

    images: int
    finished: bool  # False: stopped on request, and committed
    evaluation: Evaluation | None  # of the averaged weights on the held-out set, the last one made
    best: Best | None = None  # evaluation of the whole run
    early: bool = False  # finished before the budget: `trainer.patience` has run out


def fit(
    state: TrainState,
    config: TrainerConfig,
    data: Data,
    checkpointer: Checkpointer,
    events: Events,
    requests: Requests,
    accelerator: Accelerator,
) -> Outcome:
    """Train from `state` until the image budget or the patience is used up, or a stop is requested; commits on the way
    and at the end.

    Raises DivergedError, StorageError, and what data and listeners raise.
    """
    agreement = Agreement(accelerator.device, requests)
    evaluation: Evaluation | None = None
    log_due = snapshot_due = commit_due = False
    with (
        Instruments(config, checkpointer.run, state.images) as instruments,
        data.training(state.images) as batches,
        checkpointer,
    ):
        watchdog = instruments.watchdog
        clock = Clock(state.images, state.utilisation)
        while True:
            # ---- once in a while; after a resume first what the process before still owed
            last = state.images >= config.images
            with clock.stall():
                checkpointer.settle(agreement.written)
            if log_due:
                row = training_row(state, clock.row(state.images, batches.waited), last)
                events.row(row | data.figures(state.images))
                instruments.display.update(state.images, row)
            if snapshot_due and state.posthoc:
                with clock.pause(), watchdog.paused():
                    take_snapshots(checkpointer, state.images, state.posthoc)
            # Not while steps are skipped: good commits would have to make room for one that a rollback cannot use.
            if commit_due and not agreement.stop and checkpointer.ready(wait=last) and (last or state.guard.healthy):
                with clock.stall():
                    start_commit(state, data, checkpointer, events)
                commit_due = agreement.save = False
            if state.evaluation_owed and not agreement.stop:
                with clock.pause(), watchdog.paused():
                    evaluation = evaluate_and_draw(state, config, data, events, agreement, watchdog)
                    commit_best(state, config, data, checkpointer, events)
            if last or agreement.stop or impatient(state, config):
                break

            # ---- one step: the positions [images, images + B) of the order
            parts = split(next(batches), config.images_at_once)
            state.begin_step()
            for part in parts:
                # The ranks exchange gradients once a step, in the backward pass of the last part.
                with state.parallel.exchanging(part is parts[-1]):
                    noise = Noise(state.noise_seed, "train", part.positions, config.batch)
                    elbo = state.parallel(part.images, condition(state.model, part.conditions), noise, state.seen)
                    # DDP averages over the ranks, so their number is a factor; B is always the divisor.
                    losses = torch.where(part.weights > 0, part.weights * elbo.loss, 0.0)  # 0 x inf would be NaN
                    accelerator.backward(world_size() * losses.sum() / config.batch)
                state.metrics.add(elbo, part.weights)
            before = state.images
            state.end_step(config.batch)
            instruments.step(state.images)
            agreement.poll(checkpointer.written)
            span = before, state.images, config.images
            log_due = due(config.log_every, *span)
            snapshot_due = state.posthoc is not None and due(state.optim.posthoc, *span)
            commit_due = commit_due or agreement.save or due(config.checkpoint_every, *span)
            state.evaluation_owed |= due(config.evaluate_every, *span)

        watchdog.rest()
        if checkpointer.newest is None or checkpointer.newest.images != state.images:
            checkpointer.ready(wait=True)
            start_commit(state, data, checkpointer, events)
        checkpointer.wait()
        checkpointer.add_rows(state.images, events.take_rows())
    early = state.images < config.images and impatient(state, config)
    finished = (state.images >= config.images or early) and not state.evaluation_owed
    return Outcome(state.images, finished, evaluation, state.bounds.best, early)


def training_row(state: TrainState, pace: Row, last: bool) -> Row:
    """The figures of the steps since the row before. Raises DivergedError."""
    row: Row = {"images": state.images} | state.metrics.row(state.model) | pace
    row |= {"train/lr": state.learning_rate, "train/skipped": state.guard.check()}
    row |= state.parallel.own_time.row(pace["images_per_second"], pace["data_wait"]) | memory_row(state.seen.device)
    if remark := state.clipping.remark(last, row["train/gradient_norm"]):
        say_on_rank_zero(remark)
    return row


def start_commit(state: TrainState, data: Data, checkpointer: Checkpointer, events: Events) -> None:
    """Copy the state to host memory and write it in the background, with the rows since the last commit."""
    if unreported := data.unreported(state.images):
        events.row({"images": state.images} | unreported)
    checkpointer.start(state.images, state.sections(), events.take_rows())


def commit_best(
    state: TrainState, config: TrainerConfig, data: Data, checkpointer: Checkpointer, events: Events
) -> None:
    """Commit the state that was evaluated just now if it is the best of the run so far and not committed yet."""
    best, newest = state.bounds.best, checkpointer.newest
    committed = newest is not None and newest.images == state.images
    if best is None or best.images != state.images or committed or not config.checkpoints.keep_best:
        return
    if state.guard.healthy:
        checkpointer.ready(wait=True)
        start_commit(state, data, checkpointer, events)


def impatient(state: TrainState, config: TrainerConfig) -> bool:
    """Whether training ends for want of better evaluations."""
    best = state.bounds.best
    return best is not None and out_of_patience(best, config)


def out_of_patience(best: Best, config: TrainerConfig) -> bool:
    """Whether `trainer.patience` evaluations were no better than `best`."""
    return config.patience is not None and best.since >= config.patience


def evaluate_and_draw(
    state: TrainState,
    config: TrainerConfig,
    data: Data,
    events: Events,
    agreement: Agreement,
    watchdog: Watchdog,
) -> Evaluation | None:
    """Draw pictures and evaluate the held-out set with the averaged weights, as one row.

    Where a stop is requested meanwhile, both are abandoned and stay owed. None then, and without a held-out set.
    """
    began, row, evaluation = time.monotonic(), Row(images=state.images), None
    model, seed = state.model, state.seed
    examples: list[Batch] = []
    with state.ema.applied():
        if (held_out := data.validation()) is not None:
            with held_out:
                batches = watchdog.watching(keep_first(held_out, examples))
                evaluation = agreement.together(lambda: evaluate(model, batches, seed))
        with gathered(model, config.draws):
            shown = examples[0] if examples else None
            pictures = agreement.lead(lambda: draw_pictures(model, shown, config, seed)) or {}
    if agreement.stop:
        return None
    state.evaluation_owed = False
    if evaluation is not None:
        events.evaluation(evaluation)
        row |= evaluation.row("validation")
        row |= {"validation/precision": evaluation.precision, "validation/set": data.validation_set}
        row |= {"validation/conditions": in_words(evaluation.conditions), "validation/worst": data.worst(evaluation)}
        state.bounds.add([row])
        say_on_rank_zero(f"{state.images:,} images: validation {evaluation}, averaged weights; {_standing(state)}")
        if unused := evaluation.collapsed:
            say_on_rank_zero(f"posterior collapse: no rate in {', '.join(unused)}")
        if len(evaluation.rates) > 1:
            pictures["rates"] = bars(evaluation.rates, f"rate per level, nats, {state.images:,} images")
    if evaluation is not None or pictures:
        events.row(row | {"evaluation/seconds": time.monotonic() - began}, pictures)
    return evaluation


def draw_pictures(model: Model, examples: Batch | None, config: TrainerConfig, seed: int) -> dict[str, bytes]:
    """The pictures of an evaluation as PNG files by name."""
    return draw(model, examples, config.pictures, seed) | draw_prompts(model, config.prompts, seed)


def _standing(state: TrainState) -> str:
    """The newest evaluation beside the best one."""
    best = state.bounds.best
    if best is None:
        return "not finite"
    return "best so far" if best.images == state.images else str(best)


def due(every: int, before: int, now: int, budget: int) -> bool:
    """Whether the step from `before` to `now` images reached a multiple of `every`, or the end of the budget."""
    return now // every > before // every or now >= budget
