"""The bound of single images: which estimate of -log p(x), by which noise, given which conditions."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.condition_values import Condition
from trainer.conditions import ConditionUses, shuffled_names
from trainer.distributed.device import ReportPrecision, report_precision
from trainer.distributed.interruption import interruption_point
from trainer.distributed.ranks import all_reduce_sum
from trainer.distributed.sharding import whole_precision
from trainer.errors import TrainingError
from trainer.models.base import Model, condition
from trainer.noise import Noise
from trainer.training.condition_table import PartnerConditions
from trainer.training.data import Batch


@dataclass(frozen=True)
class Estimate:
    """An estimate of -log p(x): one of a model's bounds, with `draws` of the latents of each image."""

    seed: int
    draws: int = 1
    bound: str = "elbo"
    precision: ReportPrecision = "fp32"

    def check(self, model: Model) -> None:
        """Raises TrainingError if the model does not have this bound."""
        if self.bound not in model.bounds:
            raise TrainingError(f"a {type(model).__name__} has no bound {self.bound}; it has {', '.join(model.bounds)}")

    def noise(self, positions: Tensor) -> Noise:
        """The noise of the images at `positions`: the same for every model and every condition."""
        return Noise(self.seed, "evaluate", positions)

    def terms(self, model: Model, batch: Batch, given: Condition) -> dict[str, Tensor]:
        """[B] nats each; their sum is the estimate."""
        with report_precision(self.precision, batch.images.device):
            return model.bounds[self.bound].terms(batch.images, given, self.noise(batch.positions), self.draws)

    def nats(self, model: Model, batch: Batch, given: Condition) -> Tensor:
        """float64 [B]."""
        return torch.stack([term.double() for term in self.terms(model, batch, given).values()]).sum(0)


@contextlib.contextmanager
def evaluation_mode(model: Model) -> Iterator[None]:
    """The model in evaluation mode, without gradients; sharded weights are gathered in full precision."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), whole_precision(model):
            yield
    finally:
        model.train(training)


def condition_by_use(
    model: Model, batch: Batch, uses: ConditionUses, partners: PartnerConditions | None = None
) -> Condition:
    """What the images of a batch are conditioned on; `partners` has the conditions that are shuffled."""
    given, names = condition(model, batch.conditions, uses), shuffled_names(uses)
    if not names:
        return given
    if partners is None:
        raise TrainingError(f"condition {names[0]}=shuffled: needs the conditions of the whole set")
    return (given or {}) | partners.take(batch.positions, names)


def bounds_of_images(
    model: Model,
    batches: Iterable[Batch],
    estimate: Estimate,
    uses: ConditionUses,
    images: int,
    partners: PartnerConditions | None = None,
) -> Tensor:
    """float64 [images] nats by position in the set of `images`, on the CPU, on every rank: NaN for an image
    that is in no batch, infinity for one whose bound is not a number. All ranks together.
    """
    estimate.check(model)
    table = torch.zeros(2, images, dtype=torch.float64)
    with evaluation_mode(model):
        for batch in batches:
            table = table.to(batch.images.device)
            counted = batch.weights > 0
            nats = estimate.nats(model, batch, condition_by_use(model, batch, uses, partners))
            places = batch.positions[counted]
            table[0, places], table[1, places] = nats[counted].nan_to_num(torch.inf, torch.inf, -torch.inf), 1
            interruption_point()
    nats, count = all_reduce_sum(table).cpu()
    return torch.where(count > 0, nats, torch.nan)
