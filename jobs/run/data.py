"""The images of a run as one rank sees them, and what became of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from cluster.storage.storage import Storage
from datasets.loading.batches import Batches
from datasets.loading.build import evaluation_batches, training_batches
from datasets.order.correlation import poor_shuffle
from datasets.order.order import ImageOrder
from datasets.order.training_steps import TrainingSteps
from jobs.config.resolved import ResolvedRun
from jobs.run.ledger import Ledger, left_out
from jobs.run.worst import outlier, worst_images
from trainer.checkpoints.journal import Row
from trainer.distributed.ranks import rank, world_size
from trainer.tracking.display import say_on_rank_zero
from trainer.tracking.listener import Listener
from trainer.training.data import split
from trainer.training.evaluation import Evaluation, batch_size


class RunData(Listener):
    """The training set and the held-out set of a run; satisfies `trainer.training.data.Data`."""

    def __init__(self, resolved: ResolvedRun, run: Storage, device: torch.device):
        self.config, self.index, self.held_out = resolved.config, resolved.index, resolved.held_out
        self.device = device
        self.order_version = resolved.order_version
        self.tokenizers = resolved.tokenizers
        self.ledger = Ledger(self.config.data, self.index, run)

    def training(self, images: int) -> Batches:
        trainer, batches = self.config.trainer, self._training_batches(images)
        say_on_rank_zero(batches.describe())
        if self.index.quarantined:
            left_out = f"{self.index.quarantined:,} samples of the shards are quarantined in the index"
            say_on_rank_zero(f"{left_out}, {self.index.images:,} images are in the set")
        if rank() == 0 and trainer.images > self.index.images and (warning := poor_shuffle(self._order())):
            say_on_rank_zero(f"warning: {warning}")
        self.ledger.follow(batches, images)
        return batches

    def measured(self, images: int) -> Iterator[Tensor]:
        """This rank's share of the first `images` training images, uint8 [n, C, H, W] at a time."""
        trainer, images = self.config.trainer, min(images, self.index.images)
        with self._training_batches(0) as batches:
            for batch in itertools.islice(batches, -(-images // trainer.batch)):
                for part in split(batch, trainer.images_at_once):
                    yield part.images[part.weights > 0]

    def _training_batches(self, start: int) -> Batches:
        trainer = self.config.trainer
        return training_batches(
            self.config.data,
            self.index,
            seed=self.config.seed,
            batch=trainer.batch,
            ranks=world_size(),
            rank=rank(),
            start=start,
            micro_batch=trainer.images_at_once,
            device=self.device,
            order_version=self.order_version,
            tokenizers=self.tokenizers,
        )

    def validation(self) -> Batches | None:
        if self.held_out is None:
            return None
        trainer = self.config.trainer
        return evaluation_batches(
            self.config.data,
            self.held_out,
            batch=batch_size(trainer.images_at_once, trainer.batch, world_size()),
            ranks=world_size(),
            rank=rank(),
            device=self.device,
            tokenizers=self.tokenizers,
        )

    @property
    def validation_set(self) -> str | None:
        return self.held_out.fingerprint if self.held_out is not None else None

    def worst(self, evaluation: Evaluation) -> list[Row]:
        if rank() != 0 or self.held_out is None:
            return []
        worst = worst_images(self.held_out, evaluation)
        if line := outlier(evaluation, worst):
            say_on_rank_zero(f"warning: {line}")
        return worst

    def figures(self, images: int) -> Row:
        return self.ledger.row(images)

    def unreported(self, images: int) -> Row:
        return self.ledger.unreported(images)

    def on_evaluation(self, evaluation: Evaluation) -> None:
        """Raises DataError if more images were left out than the configuration allows."""
        assert self.held_out is not None
        for warning in left_out(self.config.data, self.held_out, evaluation.images):
            say_on_rank_zero(f"warning: {warning}")

    def _order(self) -> ImageOrder:
        data, streams = self.config.data, self.config.data.streams
        assert isinstance(streams, int)
        steps = TrainingSteps(
            self.config.seed, streams, streams, data.window, weights=data.weights, order_version=self.order_version
        )
        return steps.order(self.index)
