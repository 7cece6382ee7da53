"""Trains one rank of a run, whoever launched it: python, torchrun or Ray."""

from __future__ import annotations

import gc
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from cluster.storage.storage import Storage
from jobs.config.loading import to_yaml
from jobs.config.resolved import resolve
from jobs.config.resume import check_resume, check_same_run, continued, fingerprint
from jobs.config.schema import RunConfig
from jobs.config.shard_changes import record_shards
from jobs.config.tokenizers import known_tokenizers, write_tokenizers
from jobs.run.data import RunData
from jobs.run.ending import ending, finished, report_command, write_final
from jobs.run.micro_batch import out_of_memory, predicted_micro_batch, tried_micro_batch
from jobs.run.trackers import trackers
from trainer.checkpoints.bounds import Bounds, is_evaluation
from trainer.checkpoints.checkpointer import Checkpointer
from trainer.checkpoints.export import describe
from trainer.checkpoints.journal import read_metrics
from trainer.checkpoints.provenance import provenance
from trainer.checkpoints.warm_start import warm_start
from trainer.checkpoints.weights import in_words
from trainer.distributed.device import make_accelerator
from trainer.distributed.ranks import on_rank_zero, rank, world_size
from trainer.distributed.requests import Requests
from trainer.errors import DivergedError
from trainer.models.base import Model
from trainer.prompts import encode, parse_prompts
from trainer.tracking.display import say_on_rank_zero
from trainer.tracking.listener import Listener
from trainer.tracking.trackers import PictureFolder
from trainer.training.events import Events
from trainer.training.loop import Outcome, fit
from trainer.training.state import TrainState

NOTHING = Requests()


def train_rank(config: RunConfig, requests: Requests = NOTHING, listeners: Sequence[Listener] = ()) -> Outcome:
    """Train this rank of the run, from its newest commit to its budget or until a stop is requested.

    Raises ConfigError, DataError, StorageError or TrainingError in one line.
    """
    if ended := finished(config):
        return ended
    return TrainingRun(config, requests, listeners).train()


class TrainingRun:
    """What stays the same over the attempts that this process makes at a run: two, where the first one diverges."""

    def __init__(self, config: RunConfig, requests: Requests, listeners: Sequence[Listener]):
        if config.trainer.threads:
            torch.set_num_threads(config.trainer.threads)
        self.accelerator = make_accelerator(config.trainer.precision, config.trainer.hang_timeout)
        resolved = resolve(config)
        self.auto_micro_batch = config.trainer.micro_batch == "auto"
        if self.auto_micro_batch:
            images = predicted_micro_batch(resolved, self.accelerator.device)
            trainer = config.trainer.model_copy(update={"micro_batch": images})
            resolved = replace(resolved, config=resolved.config.model_copy(update={"trainer": trainer}))
        self.resolved, self.config = resolved, resolved.config
        config = resolved.config
        for warning in resolved.warnings:
            say_on_rank_zero(f"warning: {warning}")
        self.provenance = provenance(resolved.precision)
        self.description: dict[str, Any] = {}
        """What rebuilds the model."""
        self.run = Storage(config.run)
        self.data = RunData(resolved, self.run, self.accelerator.device)
        self.requests = requests
        self.events = Events([*listeners, self.data], say_on_rank_zero)
        self.checkpointer = Checkpointer(
            config.run, config.trainer.checkpoints, say_on_rank_zero, self.events.before_commit, self.events.commit
        )

    def train(self) -> Outcome:
        """Train; where the run diverges, once more from its last good commit."""
        config = self.config
        with self.events.listening():
            try:
                outcome = self._attempt()
            except DivergedError as error:
                reason = error.with_traceback(None)  # which would keep the failed attempt's tensors alive
                outcome = None
            if outcome is None:
                guard, batch = config.trainer.guard, config.trainer.batch
                self.checkpointer.roll_back(reason, reason.steps * batch, guard.rollback_lr)
                self._release_memory()
                outcome = self._attempt()
        if outcome.finished:
            say_on_rank_zero(f"finished after {outcome.images:,} images{ending(outcome, config, self.run)}")
        else:
            resume = "the same command resumes the run"
            say_on_rank_zero(
                f"stopped and committed after {outcome.images:,} images; {resume}. {report_command(self.run)}"
            )
        return outcome

    def _attempt(self) -> Outcome:
        config, checkpointer = self.config, self.checkpointer
        saved = checkpointer.claim(self._check, self.provenance)
        resumes = saved is not None
        if saved is not None:
            self.resolved = continued(self.resolved, saved.sections["fingerprint"])
        on_rank_zero(lambda: write_tokenizers(config.data, self.resolved.index, self.run), checkpointer.group)
        model = self.resolved.build_model(new=not resumes)
        model.tokenizers = self.data.tokenizers = known_tokenizers(config.data, self.run)
        for line in encode(model, parse_prompts(model, config.trainer.prompts), "trainer.prompts").cut:
            say_on_rank_zero(f"warning: {line}")
        self.description = describe(config.model, model) | {
            "images_in_set": self.resolved.index.images,
            "transform": config.data.transform and config.data.transform.model_dump(mode="json"),
        }
        say_on_rank_zero(f"{_count(model):,} parameters on {self.accelerator.device.type} x {world_size()}")
        if not resumes and config.init_from:
            warm_start(model, config.init_from, config.init_weights)
            say_on_rank_zero(f"initial weights ({in_words(config.init_weights)}) from {config.init_from}")
            if not config.optim.warmup:
                say_on_rank_zero(
                    "warning: optim.warmup is 0, so the first steps from these weights take the full learning rate of "
                    f"{config.optim.lr:g}, with an optimizer that has seen no gradient; optim.warmup=N raises it over "
                    "N images"
                )
        if not resumes and not config.init_from and model.measured_images:
            images = min(model.measured_images, self.resolved.index.images)
            say_on_rank_zero(f"measuring the scale of the latents on {images:,} training images")
            model.to(self.accelerator.device).measure(self.data.measured(images))
        fixed = fingerprint(self.resolved)
        state = TrainState.create(model, config.trainer, config.optim, self.accelerator, config.seed, fixed)
        state.noise_salt, state.lr_factor = checkpointer.noise_salt, checkpointer.lr_factor
        if resumes:
            checkpointer.restore(state.restore)
            self._restore_bounds(state)
            say_on_rank_zero(f"resuming after {state.images:,} images")
        on_rank_zero(self._write_configuration, checkpointer.group)
        self._start_trackers()
        self.data.order_version = self.resolved.order_version
        self.events.rows = []  # a failed attempt leaves some
        self.events.common = {
            "restarts": checkpointer.restarts,
            "rollbacks": state.noise_salt,
            "train/precision": self.resolved.precision,
        }
        outcome = self._fit(state)
        if outcome.finished:  # also where an earlier process ended between its last commit and this
            assert checkpointer.newest is not None
            facts = {"commit": checkpointer.newest.name, "fingerprint": fixed, "provenance": self.provenance}
            facts = self.description | facts | {"validation_set": self.data.validation_set}
            averaged = state.averaged()
            on_rank_zero(
                lambda: write_final(checkpointer.lineage, outcome, facts, averaged, model.tokenizers),
                checkpointer.group,
            )
        return outcome

    def _fit(self, state: TrainState) -> Outcome:
        trainer = self.config.trainer
        if self.auto_micro_batch and trainer.images_at_once:
            images = tried_micro_batch(state, trainer.images_at_once, self.accelerator)
            trainer = trainer.model_copy(update={"micro_batch": images})
            self.data.config = self.config.model_copy(update={"trainer": trainer})
            self.events.common["train/micro_batch"] = images
        try:
            return fit(state, trainer, self.data, self.checkpointer, self.events, self.requests, self.accelerator)
        except torch.OutOfMemoryError as error:
            raise out_of_memory(self.resolved, self.accelerator.device) from error

    def _check(self, saved: dict[str, Any]) -> None:
        """Raises TrainingError if the run was started with other settings, or on other data."""
        for line in check_resume(self.resolved, saved["fingerprint"], saved["progress"]["images"]):
            say_on_rank_zero(line)
        changes = check_same_run(self.resolved, saved["fingerprint"])
        self.data.ledger.expect(changes, saved["progress"]["images"])

    def _write_configuration(self) -> None:
        record_shards(self.run, self.resolved.index)
        self.run.write("config.yaml", to_yaml(self.config).encode())
        self.run.write("model.json", json.dumps(self.description, indent=1).encode())

    def _start_trackers(self) -> None:
        """Once it is certain that this process may continue the run; on rank 0 only."""
        if rank() == 0 and not any(isinstance(listener, PictureFolder) for listener in self.events.listeners):
            self.events.listeners += trackers(self.config, self.run)

    def _restore_bounds(self, state: TrainState) -> None:
        """Read the run's evaluations so far. An extended run has made the one that its last commit says is owed."""
        group = self.checkpointer.group  # reading all rows may take longer than trainer.hang_timeout
        evaluations = on_rank_zero(lambda: list(filter(is_evaluation, read_metrics(self.run))), group)
        bounds = Bounds(evaluations)
        state.bounds = bounds if bounds.set == self.data.validation_set else Bounds()
        state.evaluation_owed &= all(row["images"] != state.images for row in evaluations)

    def _release_memory(self) -> None:
        """Free the failed attempt's model, optimizer and averages before the next attempt allocates its own."""
        self.accelerator.free_memory()
        gc.collect()
        if self.accelerator.device.type == "cuda":
            torch.cuda.empty_cache()


def _count(model: Model) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
