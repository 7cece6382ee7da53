"""The honest bound over a whole set: sums and counts in float64, every image once, on any number of ranks."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from trainer.elbo import bits_per_dimension
from trainer.models.base import Condition, Model
from trainer.noise import Noise
from trainer.ranks import add_up


class Evaluation(NamedTuple):
    """Means over a set, in nats an image."""

    images: int
    nats: float  # the negative bound
    standard_error: float  # of `nats`, over the images
    distortion: float
    rates: dict[str, float]
    dimensions: int
    is_density: bool

    @property
    def bpd(self) -> float:
        """The negative bound in bits per dimension; NaN for a density, which has no place on that axis."""
        return math.nan if self.is_density else bits_per_dimension(self.nats, self.dimensions)

    def row(self, prefix: str) -> dict[str, float]:
        """The figures by their names in the metrics, `prefix`/..."""
        row = {f"{prefix}/nats": self.nats, f"{prefix}/standard_error": self.standard_error}
        if not self.is_density:
            row[f"{prefix}/bpd"] = self.bpd
        row[f"{prefix}/distortion"] = self.distortion
        return row | {f"{prefix}/rate/{name}": rate for name, rate in self.rates.items()}

    def __str__(self) -> str:
        error = self.standard_error
        if self.is_density:
            return f"{self.nats:.3f} ± {error:.3f} nats (a density)"
        return f"{self.bpd:.4f} ± {bits_per_dimension(error, self.dimensions):.4f} bpd ({self.nats:.2f} nats)"


@torch.no_grad()
def evaluate(model: Model, batches: Iterable[Any], accelerator: Accelerator, seed: int) -> Evaluation:
    """The bound of every image of `batches` (this rank's part of the set, padded with images of weight zero)."""
    model.eval()
    names: list[str] = []
    sums = torch.zeros(0)
    progress = torch.zeros((), device=accelerator.device)
    for batch in batches:
        noise = Noise(seed, "evaluate", batch.positions)
        with accelerator.autocast():
            elbo = model(batch.images, condition(model, batch.labels), noise, progress)
        names = list(elbo.rates)
        bound = elbo.negative_bound
        squares = bound.double() ** 2  # in float32 they would swallow what the images differ by
        columns = [torch.ones_like(squares), bound, squares, elbo.distortion, *elbo.rates.values()]
        real = batch.weights > 0
        part = torch.stack([column.double() for column in columns])[:, real].sum(1)
        sums = part if sums.numel() == 0 else sums + part
    model.train()
    count, nats, squares, distortion, *rates = add_up(sums).tolist()
    mean = nats / count
    variance = max(squares / count - mean**2, 0.0)
    return Evaluation(
        images=round(count),
        nats=mean,
        standard_error=math.sqrt(variance / count),
        distortion=distortion / count,
        rates={name: rate / count for name, rate in zip(names, rates, strict=True)},
        dimensions=model.spec.dimensions,
        is_density=model.is_density,
    )


def condition(model: Model, labels: Tensor | None) -> Condition:
    """What a model may be conditioned on: the labels, if the set has classes."""
    return {"label": labels} if model.spec.classes and labels is not None else None
