"""How far the latents received so far determine an image, against the bits they take."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.conditions import ConditionUses
from trainer.distributed.device import report_precision
from trainer.distributed.interruption import interruption_point
from trainer.distributed.ranks import all_reduce_sum
from trainer.images import ImageSpec
from trainer.models.base import Model
from trainer.training.condition_table import PartnerConditions
from trainer.training.data import Batch
from trainer.training.image_bounds import Estimate, condition_by_use, evaluation_mode


class Received(NamedTuple):
    """Means over the images when a level and all above it have been received."""

    name: str
    nats: float  # of these levels, an image
    squared_error: float  # of a value, on a scale of 0 to 255


class RateDistortion(NamedTuple):
    """The levels in the order in which they are received; the last is the image itself, with the nats of the bound."""

    images: int
    levels: list[Received]
    dimensions: float  # D of an image, the mean over the set


def rate_distortion(
    model: Model,
    batches: Iterable[Batch],
    estimate: Estimate,
    uses: ConditionUses,
    partners: PartnerConditions | None = None,
) -> RateDistortion:
    """Measure every image of `batches`, this rank's part of the set. All ranks together, with as many batches.

    Raises TrainingError if the model has one level of latents.
    """
    names: list[str] = []
    sums = torch.zeros(0)
    with evaluation_mode(model):
        for batch in batches:
            given = condition_by_use(model, batch, uses, partners)
            kept, noise = batch.weights > 0, estimate.noise(batch.positions)
            columns = [kept.double(), model.spec.dimensions_of(batch.images)]
            names = []
            with report_precision(estimate.precision, batch.images.device):
                for name, rate, images in model.refinements(batch.images, given, noise):
                    names.append(name)
                    columns += [rate.double(), _squared_error(images, batch.images, model.spec)]
            part = torch.stack([column[kept].sum() for column in columns])
            sums = part if sums.numel() == 0 else sums + part
            interruption_point()
    count, dimensions, *rows = all_reduce_sum(sums).tolist()
    received, nats = [], 0.0
    for name, rate, error in zip(names, rows[::2], rows[1::2], strict=True):
        nats += rate / count
        received.append(Received(name, nats, error / count))
    return RateDistortion(round(count), received, dimensions / count)


def _squared_error(made: Tensor, images: Tensor, spec: ImageSpec) -> Tensor:
    """float64 [B]: mean over the values of two batches of images, on a scale of 0 to 255."""
    difference = (made.double() - images.double()) * (255 / (spec.levels - 1))  # 0 at padding
    return difference.square().flatten(1).sum(1) / spec.dimensions_of(images).clamp(min=1)
