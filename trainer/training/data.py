"""What the loop needs to know of data: batches of tensors, padded with images of weight zero."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor

from trainer.checkpoints.journal import Row
from trainer.condition_values import TokenArrays, Tokens

if TYPE_CHECKING:
    from trainer.training.evaluation import Evaluation


class Batch(Protocol):
    """One rank's share of a global batch in training, or some images of its part of a set in evaluation."""

    @property
    def images(self) -> Tensor:
        """uint8 [n, C, H, W] levels"""

    @property
    def positions(self) -> Tensor:
        """int64 [n] in the global order (training) or in the set (evaluation); 0 for padding"""

    @property
    def weights(self) -> Tensor:
        """float32 [n]: 1; 0 for padding and for quarantined images"""

    @property
    def conditions(self) -> Mapping[str, Tensor | TokenArrays]:
        """What the images are conditioned on, by name: [n, ...] each"""


class Batches(Iterator[Batch], AbstractContextManager["Batches"], Protocol):
    """Batches of one shape, the same number of them on every rank; a context manager that ends their preparation."""

    @property
    def waited(self) -> float:
        """Seconds that the consumer has waited for data so far."""


class Data(Protocol):
    """The images of a run, as one rank sees them."""

    def training(self, images: int) -> Batches:
        """This rank's share of every global batch from the image count `images` on, without end."""

    def validation(self) -> Batches | None:
        """This rank's part of the held-out set, each image once; None where the run has no such set."""

    @property
    def validation_set(self) -> str | None:
        """A fingerprint of the held-out set: bounds on different sets must not be compared."""

    def worst(self, evaluation: Evaluation) -> list[Row]:
        """The images of the held-out set with the largest bounds, by name, on rank 0; empty on other ranks."""

    def figures(self, images: int) -> Row:
        """What to add to the row of metrics at `images`: epochs, quarantined images. All ranks together."""

    def unreported(self, images: int) -> Row:
        """What a commit at `images` must not lose and no row has reported yet; often empty. All ranks together."""


def keep_first(batches: Iterable[Batch], kept: list[Batch]) -> Iterator[Batch]:
    """The batches; the first one is also appended to `kept`."""
    for batch in batches:
        if not kept:
            kept.append(batch)
        yield batch


class MicroBatch(NamedTuple):
    """What a rank takes through the model at once."""

    images: Tensor  # uint8 [n, C, H, W]
    positions: Tensor  # int64 [n]
    weights: Tensor  # float32 [n]
    conditions: dict[str, Tensor | TokenArrays]  # [n, ...] each


def split(batch: Batch, micro_batch: int | None) -> list[MicroBatch]:
    """The micro-batches of a rank's share, all of one shape: the loader pads shares to a multiple of `micro_batch`."""
    size = micro_batch or len(batch.images)
    columns = (column.split(size) for column in (batch.images, batch.positions, batch.weights))
    parts = [MicroBatch(images, positions, weights, {}) for images, positions, weights in zip(*columns, strict=True)]
    for name, value in batch.conditions.items():
        for part, piece in zip(parts, _split(value, size), strict=True):
            part.conditions[name] = piece
    return parts


def _split(value: Tensor | TokenArrays, size: int) -> Iterable[Tensor | TokenArrays]:
    if isinstance(value, Tensor):
        return list(torch.split(value, size))
    return [Tokens(*pair) for pair in zip(value.ids.split(size), value.lengths.split(size), strict=True)]
