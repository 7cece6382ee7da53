"""What runs on each rank, whoever launched it: python, torchrun or Ray."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch

from cluster.storage.errors import MissingError
from cluster.storage.storage import Storage, join
from datasets.loading.loader import Batch, Batches, evaluation_batches, training_batches
from jobs.config.resolved import resolve
from jobs.config.resume import check_resume, fingerprint
from jobs.config.schema import RunConfig, to_yaml
from jobs.errors import ConfigError
from jobs.run.ledger import Ledger, check_left_out
from trainer.checkpoints.checkpointer import Checkpoints
from trainer.checkpoints.export import FINAL, describe
from trainer.checkpoints.lineage import Commit
from trainer.checkpoints.staging import State
from trainer.checkpoints.warm_start import warm_start
from trainer.checkpoints.weights import in_words
from trainer.distributed.device import make_accelerator
from trainer.distributed.ranks import on_rank_zero, rank, world_size
from trainer.errors import DivergedError
from trainer.images import ImageSpec
from trainer.models.base import Model
from trainer.tracking.display import say_on_rank_zero
from trainer.tracking.trackers import PictureFolder, Tracker, WandbTracker, lacks_rows
from trainer.training.evaluation import Evaluation, batch_size
from trainer.training.loop import Job, Outcome, fit


def work(
    config: RunConfig,
    should_stop: Callable[[], bool] = lambda: False,
    should_save: Callable[[], bool] = lambda: False,
    notice: Callable[[], bool] | None = None,
    on_commit: Callable[[Commit], None] = lambda commit: None,
    more_trackers: Sequence[Tracker] = (),
) -> Outcome:
    """Train this rank's share of the run, from its newest commit to its budget or until a stop is asked for.

    The callables are those of `Job` and of `Checkpoints`; `more_trackers` get the figures too, on rank 0.

    Raises ConfigError, DataError, StorageError or TrainingError in one line.
    """
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    accelerator = make_accelerator(config.trainer.precision, config.trainer.hang_timeout)
    if ended := finished(config):
        return ended
    run, say = Storage(config.run), say_on_rank_zero
    resolved = resolve(config)
    config, index, held_out, spec = resolved.config, resolved.index, resolved.held_out, resolved.spec
    if mixed := index.mixed_colours:
        say(f"warning: {mixed}")
    model = _model(config, spec)
    description = describe(config.model, spec)

    def training(images: int) -> Batches:
        batches = training_batches(
            config.data,
            index,
            seed=config.seed,
            batch=config.trainer.batch,
            ranks=world_size(),
            rank=rank(),
            start=images,
            micro_batch=config.trainer.micro_batch,
            device=accelerator.device,
        )
        say(batches.describe())
        ledger.follow(batches, images)
        return batches

    ledger = Ledger(config.data, index, run)

    def validation() -> Iterable[Batch]:
        assert held_out is not None
        return evaluation_batches(
            config.data,
            held_out,
            batch=batch_size(config.trainer.micro_batch, config.trainer.batch, world_size()),
            ranks=world_size(),
            rank=rank(),
            device=accelerator.device,
        )

    def evaluated(evaluation: Evaluation) -> None:
        assert held_out is not None
        check_left_out(config.data, held_out, evaluation.images)

    def check(state: State) -> None:
        for line in check_resume(resolved, state["fingerprint"], state["progress"]["images"]):
            say(line)

    trackers: list[Tracker] = []

    def prepare() -> None:
        run.write("config.yaml", to_yaml(config).encode())
        run.write("model.json", json.dumps(description, indent=1).encode())
        if not trackers:
            trackers.extend([*_trackers(config, run, say), *more_trackers])

    def before_commit() -> None:
        for tracker in trackers:
            tracker.commit()

    checkpoints = Checkpoints(config.run, config.trainer.checkpoints, say, before_commit, on_commit)
    say(f"{sum(p.numel() for p in model.parameters()):,} parameters on {accelerator.device.type} x {world_size()}")
    job = Job(
        model=model,
        config=config.trainer,
        optim=config.optim,
        seed=config.seed,
        training=training,
        validation=validation if held_out else None,
        checkpoints=checkpoints,
        description=description,
        fingerprint=fingerprint(resolved),
        check=check,
        warm_start=lambda model: _warm_start(config, model),
        prepare=lambda: on_rank_zero(prepare),  # so that only rank 0 has trackers
        figures=ledger,
        closing=ledger.closing,
        evaluated=evaluated,
        trackers=trackers,
        should_stop=should_stop,
        should_save=should_save,
        notice=notice,
    )
    try:
        try:
            outcome = fit(job, accelerator)
        except DivergedError as reason:
            checkpoints.roll_back(reason, reason.steps * config.trainer.batch, config.trainer.guard.rollback_lr)
            outcome = fit(replace(job, model=_model(config, spec)), accelerator)
    finally:
        for tracker in trackers:
            tracker.finish()
    if outcome.finished:
        say(f"finished after {outcome.images:,} images. {_where_to_look(run)}")
    else:
        say(f"stopped after {outcome.images:,} images, committed; the same command goes on from there")
    return outcome


def finished(config: RunConfig) -> Outcome | None:
    """The end of a run that has nothing left to train, said; None where there is something to do.

    Raises TrainingError if the run folder is that of another run.
    """
    run = Storage(config.run)
    try:
        facts = json.loads(run.read(f"{FINAL}/config.json"))
    except MissingError:
        return None
    images: int = facts["images_seen"]
    check_resume(resolve(config), facts["fingerprint"], images)
    if images < config.trainer.images:  # extended
        return None
    on_rank_zero(lambda: _catch_up(config, run))
    say_on_rank_zero(f"{config.run} is finished: {images:,} images seen. {_where_to_look(run)}")
    return Outcome(images, True, None)


def _model(config: RunConfig, spec: ImageSpec) -> Model:
    """With the initial weights, the same on every rank."""
    torch.manual_seed(config.seed)
    try:
        model = config.model.build(spec)
    except ValueError as error:
        raise ConfigError(f"model.{error}") from error
    if config.trainer.compile:
        model.compile()
    return model


def _warm_start(config: RunConfig, model: Model) -> None:
    if config.init_from:
        warm_start(model, config.init_from, config.init_weights)
        say_on_rank_zero(f"begins with the weights ({in_words(config.init_weights)}) of {config.init_from}")


def _trackers(config: RunConfig, run: Storage, say: Callable[[str], None]) -> tuple[Tracker, ...]:
    if config.tracking.mode == "off":
        return (PictureFolder(run),)
    return PictureFolder(run), WandbTracker(run, config.tracking, config.model_dump(mode="json"), say)


def _catch_up(config: RunConfig, run: Storage) -> None:
    """Send W&B what it lacks of a finished run."""
    if config.tracking.mode != "off" and lacks_rows(run):
        for tracker in _trackers(config, run, say_on_rank_zero):
            tracker.finish()


def _where_to_look(run: Storage) -> str:
    pictures = [entry.path for entry in run.list("pictures") if "/samples-" in entry.path]
    samples = f"Samples: {join(run.url, pictures[-1])}. " if pictures else ""
    return f"{samples}Weights: {join(run.url, FINAL)}"
