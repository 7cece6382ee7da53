"""The training loop: the same for every model, on one process or many.

It knows `Elbo` and nothing else of a model. Progress is counted in images: step k takes the positions [kB, (k+1)B) of
the global order, B being the global batch, whatever the number of ranks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, Self

import torch
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from trainer.checkpoints.checkpointer import CheckpointConfig, Checkpoints
from trainer.checkpoints.export import FINAL, write_model
from trainer.checkpoints.journal import Row
from trainer.checkpoints.snapshots import take_snapshots
from trainer.checkpoints.staging import State
from trainer.config import Config, MayChange
from trainer.distributed.device import ChannelsLast, Precision, to_device
from trainer.distributed.ranks import Agreement, on_rank_zero, world_size
from trainer.distributed.sharding import Parallel, Sharding, gathered, gathered_tensor, load_model_state
from trainer.distributed.watchdog import Watchdog
from trainer.models.base import Model
from trainer.noise import Noise
from trainer.tracking.display import Display, say_on_rank_zero
from trainer.tracking.flops import utilisation
from trainer.tracking.pictures import draw
from trainer.tracking.plots import bars
from trainer.tracking.profiling import Profiler
from trainer.tracking.trackers import Tracker
from trainer.training.ema import Ema
from trainer.training.evaluation import Evaluation, condition, evaluate
from trainer.training.guard import Guard, GuardConfig
from trainer.training.metrics import Clock, Metrics
from trainer.training.optimizer import OptimConfig, adamw, learning_rate, load_optimizer_state, optimizer_state
from trainer.training.posthoc_ema import PosthocEma

if TYPE_CHECKING:
    from accelerate import Accelerator


class TrainerConfig(Config):
    """The training loop. Everything is counted in images."""

    images: Annotated[PositiveInt, MayChange] = 200_000
    """Training budget: images after which training ends. A larger budget extends a finished run."""
    batch: PositiveInt = 128
    """Global batch size: images per optimizer step, over all ranks. Independent of the number of ranks."""
    micro_batch: Annotated[PositiveInt | None, MayChange] = None
    """Largest number of images in one forward pass of a rank; gradients accumulate to the global batch. null: the
    rank's whole share."""
    precision: Annotated[Precision, MayChange] = "auto"
    """auto: bf16 autocast on GPU, fp32 on CPU. tf32: fp32 with TF32 matrix products and convolutions on GPU. If auto
    means another precision when a run is resumed on another machine, the run is refused until this key is set."""
    channels_last: Annotated[ChannelsLast, MayChange] = "auto"
    """Memory format of convolutional models. auto: channels_last on GPU for models without GroupNorm."""
    threads: Annotated[PositiveInt | None, MayChange] = None
    """CPU threads of each rank; null: PyTorch's default. With a fixed number a resumed run on CPU is bitwise equal to
    an uninterrupted one."""
    sharding: Annotated[Sharding, MayChange] = "ddp"
    """ddp: each rank holds the whole state. fsdp: each rank holds a shard of weights, gradients, averages and
    optimizer state (FSDP2)."""
    hang_timeout: Annotated[PositiveFloat, MayChange] = 600.0
    """Seconds without progress (a hanging rank, a lost network) after which a rank prints the stack traces of its
    threads and exits. Must exceed the longest outage of the store that is waited for (LOWERBOUND_PATIENCE)."""
    compile: Annotated[bool, MayChange] = False
    """Compile the model with torch.compile."""
    peak_flops: Annotated[PositiveFloat | None, MayChange] = None
    """Peak FLOP/s of a device, for the MFU. null: from a table of GPUs; no MFU on CPU."""
    profile: Annotated[NonNegativeInt, MayChange] = 0
    """Steps to profile after warm-up; the trace is written to <run>/profiles/."""
    log_every: Annotated[PositiveInt, MayChange] = 5_000
    """Images between rows of metrics."""
    evaluate_every: Annotated[PositiveInt, MayChange] = 50_000
    """Images between evaluations of the held-out set."""
    checkpoint_every: Annotated[PositiveInt, MayChange] = 50_000
    """Images between checkpoints."""
    pictures: Annotated[NonNegativeInt, MayChange] = 64
    """Samples in the picture of an evaluation, which also has half as many reconstructions."""
    checkpoints: Annotated[CheckpointConfig, MayChange] = CheckpointConfig()
    """Which checkpoints are kept."""
    guard: Annotated[GuardConfig, MayChange] = GuardConfig()
    """When a step is skipped and when the run is rolled back."""

    @model_validator(mode="after")
    def _contiguous_shards(self) -> Self:
        if self.channels_last is True and self.sharding == "fsdp":
            raise ValueError("channels_last: true needs sharding: ddp; FSDP2 shards contiguous parameters only")
        return self


@dataclass
class Job:
    """All that a training run is made of."""

    model: Model
    config: TrainerConfig
    optim: OptimConfig
    seed: int
    training: Callable[[int], contextlib.AbstractContextManager[Any]]
    """Opens this rank's endless batches from an image count on; they have .images, .labels, .positions, .weights."""
    validation: Callable[[], Iterable[Any]] | None
    """This rank's part of the held-out set, as such batches; None: there is none."""
    checkpoints: Checkpoints
    description: dict[str, Any]
    """What rebuilds the model (export.describe)."""
    fingerprint: dict[str, Any]
    """What must not change when the run goes on; saved with the state."""
    check: Callable[[State], None] = lambda state: None
    """Raises if a saved state is not one that this job may continue from."""
    warm_start: Callable[[Model], None] = lambda model: None
    """Called at the start of a run, before anything is made of the initial weights: may give it others."""
    prepare: Callable[[], None] = lambda: None
    """Called once it is certain that this job may go on with the run."""
    figures: Callable[[int], Row] = lambda images: {}
    """More for a row of metrics after so many images; asked on every rank at the same steps."""
    closing: Callable[[int], Row] = lambda images: {}
    """What has to be in a row before a commit after so many images and is in none yet; asked on every rank."""
    evaluated: Callable[[Evaluation], None] = lambda evaluation: None
    """Told of every evaluation of the held-out set, on all ranks; may raise."""
    trackers: Sequence[Tracker] = ()
    should_stop: Callable[[], bool] = lambda: False
    """Asked once a step, on every rank: whether to commit and leave."""
    should_save: Callable[[], bool] = lambda: False
    """Asked once a step, on every rank: whether to commit now and go on."""
    notice: Callable[[], bool] | None = None
    """Asked every few seconds, on all ranks after the same step: whether to commit and leave."""


class Outcome(NamedTuple):
    """How a call of `fit` ended."""

    images: int
    finished: bool  # False: stopped on request, and committed
    evaluation: Evaluation | None  # of the averaged weights on the held-out set, the last one made


def fit(job: Job, accelerator: Accelerator) -> Outcome:
    """Train until the image budget is used up or a stop is asked for; go on from the run's newest commit."""
    config, device, checkpoints = job.config, accelerator.device, job.checkpoints
    restored = checkpoints.begin(job.check)
    if restored is None:
        job.warm_start(job.model)
    model = job.model
    to_device(model, device, config.channels_last, config.sharding)
    mfu = utilisation(model, accelerator.mixed_precision == "bf16", config.peak_flops, say_on_rank_zero)
    parallel = Parallel(model, accelerator, config.sharding)
    optimizer, ema, guard = adamw(model, job.optim), Ema(model, job.optim.ema), Guard(config.guard, device)
    posthoc = PosthocEma(model) if job.optim.posthoc else None
    sums, agreement, rows = Metrics(device), Agreement(device, job.notice), list[Row]()
    images = 0

    def state() -> State:
        return {
            "model": model.state_dict(),
            "ema": ema.state_dict(),
            **({"posthoc": posthoc.state_dict()} if posthoc else {}),
            "optimizer": optimizer_state(optimizer, model),
            "progress": {
                "images": images,
                "healthy": guard.healthy,
                "guard": guard.state.tolist(),
                "sums": sums.state_dict(),
                "noise_salt": checkpoints.noise_salt,
                "lr_factor": checkpoints.lr_factor,
            },
            "fingerprint": job.fingerprint,
        }

    if restored:
        load_model_state(model, restored["model"])
        ema.load_state_dict(restored["ema"])
        if posthoc and "posthoc" in restored:
            posthoc.load_state_dict(restored["posthoc"])
        elif posthoc:
            posthoc.start = restored["progress"]["images"]
            say_on_rank_zero(f"optim.posthoc: averaging starts after {posthoc.start:,} images")
        load_optimizer_state(optimizer, model, restored["optimizer"])
        images = restored["progress"]["images"]
        guard.state = torch.tensor(restored["progress"]["guard"], device=device)
        sums.load_state_dict(restored["progress"]["sums"])
    job.prepare()

    started, stopping, overdue = images, False, False
    seed = job.seed + (checkpoints.noise_salt << 32)  # of the training noise; after a rollback another one
    evaluation: Evaluation | None = None
    seen = torch.tensor(float(images), dtype=torch.float64, device=device)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    watchdog = Watchdog(config.hang_timeout)
    profiler = Profiler(checkpoints.run, config.profile, say_on_rank_zero)
    with Display(config.images, images) as display, job.training(images) as batches, checkpoints, watchdog, profiler:
        if images:
            say_on_rank_zero(f"going on after {images:,} images")
        clock = Clock(images, mfu)
        while images < config.images and not stopping:
            # ---- one step: the positions [images, images + B) of the order
            batch = next(batches)
            for group in optimizer.param_groups:
                group["lr"] = checkpoints.lr_factor * learning_rate(job.optim, images, config.images)
            optimizer.zero_grad(set_to_none=True)
            parts = split(batch, config.micro_batch)
            for part in parts:
                # the ranks exchange gradients once a step, in the backward pass of the last part
                with parallel.exchanging(part is parts[-1]):
                    noise = Noise(seed, "train", part.positions, config.batch)
                    elbo = parallel(part.images, condition(model, part.labels), noise, seen)
                    # DDP takes the mean over the ranks, so their number comes back in; B is always the divisor
                    loss = world_size() * (part.weights * elbo.loss).sum() / config.batch
                    accelerator.backward(loss)
                sums.add(elbo, part.weights)
            sums.add_norm(guard.step(optimizer, parameters, job.optim.clip))
            before, images = images, images + config.batch
            seen += config.batch
            ema.update(images, config.batch)
            if posthoc:
                posthoc.update(images, config.batch)
            watchdog.beat()
            profiler.step(images)

            # ---- once in a while
            stopping = agreement.reached(job.should_stop(), checkpoints.written, job.should_save())
            with clock.stall():
                checkpoints.settle(agreement.written)
            row: Row = {}
            pictures: dict[str, bytes] = {}
            if due(config.log_every, before, images, config.images):
                row |= sums.row(model) | clock.row(images, batches.waited) | job.figures(images)
                row |= {"train/lr": optimizer.param_groups[0]["lr"], "train/skipped": guard.check()}
                row["restarts"] = checkpoints.restarts
                display.update(images, row)
            if due(config.evaluate_every, before, images, config.images):
                with ema.applied():
                    watchdog.rest()
                    with gathered(model):
                        pictures = draw(model, job.validation, config.pictures, job.seed)
                    if job.validation:
                        evaluation = evaluate(model, watchdog.watching(job.validation()), job.seed)
                        assert evaluation is not None
                        job.evaluated(evaluation)
                        row |= evaluation.row("validation") | {"validation/precision": evaluation.precision}
                        say_on_rank_zero(f"{images:,} images: validation {evaluation}, averaged weights")
                        if unused := evaluation.collapsed:
                            say_on_rank_zero(f"posterior collapse: no rate in {', '.join(unused)}")
                        if len(evaluation.rates) > 1:
                            pictures["rates"] = bars(evaluation.rates, f"rate per level, nats, {images:,} images")
            if posthoc and due(job.optim.posthoc, before, images, config.images):
                watchdog.rest()
                take_snapshots(checkpoints, images, posthoc)
            if row or pictures:
                row = {"images": images} | row
                rows.append(row)
                for tracker in job.trackers:
                    tracker.log(row, pictures)
            leaving = stopping or images >= config.images
            overdue = overdue or agreement.save or due(config.checkpoint_every, before, images, config.images)
            # Not while steps are skipped: the last good commits would have to make room for what a rollback cannot use.
            if staged := overdue and checkpoints.ready() and not leaving and guard.healthy:
                with clock.stall():
                    checkpoints.start(images, state(), [*rows, *closed(job.closing(images), images)])
                rows, overdue = [], False
            if pictures or staged:
                clock.restart(images, batches.waited)  # the pace shown is that of training

        # ---- at the end
        watchdog.rest()
        if images > started or stopping:
            checkpoints.save(images, state(), [*rows, *closed(job.closing(images), images)])
        finished = images >= config.images
        if finished:  # also where an earlier process ended between its last commit and this
            averaged: dict[str, Tensor] = model.state_dict() | ema.state_dict()
            tensors = {name: gathered_tensor(value) for name, value in averaged.items()}
            facts = {"images_seen": images, "weights": "ema", "fingerprint": job.fingerprint}
            on_rank_zero(lambda: write_model(checkpoints.run.folder(FINAL), job.description | facts, tensors))
    return Outcome(images, finished, evaluation)


def due(every: int, before: int, now: int, budget: int) -> bool:
    """Whether a multiple of `every` images was reached in the step from `before` to `now`, or the end of the budget."""
    return now // every > before // every or now >= budget


def closed(row: Row, images: int) -> list[Row]:
    """The row that closes a commit, if there is anything in it."""
    return [{"images": images} | row] if row else []


class Part(NamedTuple):
    """A micro-batch."""

    images: Tensor  # uint8 [n, C, H, W]
    labels: Tensor  # int64 [n]
    positions: Tensor  # int64 [n]
    weights: Tensor  # float32 [n], 0 for padding


def split(batch: Any, micro_batch: int | None) -> list[Part]:
    """The micro-batches of a rank's share: all of one shape, as the loader pads shares to a multiple of it."""
    size = micro_batch or len(batch.images)
    columns = [column.split(size) for column in (batch.images, batch.labels, batch.positions, batch.weights)]
    return [Part(*columns) for columns in zip(*columns, strict=True)]
