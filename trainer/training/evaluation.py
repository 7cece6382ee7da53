"""The honest bound over a whole set: sums and counts in float64, every image once, on any number of ranks."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

from trainer.distributed.ranks import all_reduce_sum
from trainer.elbo import bits_per_dimension
from trainer.errors import TrainingError
from trainer.models.base import Condition, Model
from trainer.models.diffusion import Diffusion
from trainer.noise import Noise

if TYPE_CHECKING:
    from accelerate import Accelerator

DISTORTION = "distortion"
COLLAPSED = 0.01  # nats an image below which a level counts as unused


class Evaluation(NamedTuple):
    """Means over a set, in nats an image."""

    images: int
    nats: float  # the negative bound
    standard_error: float  # of `nats`, over the images
    distortion: float  # NaN for a bound that has no such term
    rates: dict[str, float]
    dimensions: int
    is_density: bool

    @property
    def bpd(self) -> float:
        """The negative bound in bits per dimension; NaN for a density, which has no place on that axis."""
        return math.nan if self.is_density else bits_per_dimension(self.nats, self.dimensions)

    @property
    def collapsed(self) -> list[str]:
        """The levels whose posterior has become the prior: they carry next to nothing of the image."""
        return [name for name, rate in self.rates.items() if name.startswith("z") and abs(rate) < COLLAPSED]

    def row(self, prefix: str) -> dict[str, float]:
        """The figures by their names in the metrics, `prefix`/..."""
        row = {f"{prefix}/nats": self.nats, f"{prefix}/standard_error": self.standard_error}
        if not self.is_density:
            row[f"{prefix}/bpd"] = self.bpd
        if self.rates:
            row[f"{prefix}/distortion"] = self.distortion
        return row | {f"{prefix}/rate/{name}": rate for name, rate in self.rates.items()}

    def __str__(self) -> str:
        error = self.standard_error
        if self.is_density:
            return f"{self.nats:.3f} ± {error:.3f} nats (a density)"
        return f"{self.bpd:.4f} ± {bits_per_dimension(error, self.dimensions):.4f} bpd ({self.nats:.2f} nats)"


Bound = Literal["elbo", "iw", "flow"]


@torch.no_grad()
def evaluate(
    model: Model,
    batches: Iterable[Any],
    accelerator: Accelerator,
    seed: int,
    samples: int = 1,
    bound: Bound = "elbo",
) -> Evaluation:
    """The bound of every image of `batches` (this rank's part of the set, padded with images of weight zero).

    elbo: the mean over `samples` draws of the latents of each image. iw: the importance-weighted bound of so many
    draws, log 1/k sum w (Burda et al. 2016), which is one number: it has no distortion nor rates. flow: of a
    diffusion, the mean of its probability-flow likelihood, which is no bound but an estimate, one number too.
    """
    model.eval()
    terms = {"elbo": _averaged, "iw": _importance_weighted, "flow": _flow}[bound]
    names: list[str] = []
    sums = torch.zeros(0)
    for batch in batches:
        noise = Noise(seed, "evaluate", batch.positions)
        with accelerator.autocast():
            columns = terms(model, batch.images, condition(model, batch.labels), noise, samples)
        names = list(columns)
        nats = torch.stack([column.double() for column in columns.values()]).sum(0)
        table = torch.stack([torch.ones_like(nats), nats, nats**2, *(column.double() for column in columns.values())])
        part = table[:, batch.weights > 0].sum(1)
        sums = part if sums.numel() == 0 else sums + part
    model.train()
    count, total, squares, *means = all_reduce_sum(sums).tolist()
    mean = total / count
    figures = {name: value / count for name, value in zip(names, means, strict=True)}
    return Evaluation(
        images=round(count),
        nats=mean,
        standard_error=math.sqrt(max(squares / count - mean**2, 0.0) / count),
        distortion=figures.pop(DISTORTION, math.nan),
        rates=figures if bound == "elbo" else {},
        dimensions=model.spec.dimensions,
        is_density=model.is_density,
    )


def _averaged(model: Model, images: Tensor, given: Condition, noise: Noise, samples: int) -> dict[str, Tensor]:
    """[B] each: distortion and rates, the mean over the draws."""
    progress = torch.zeros((), device=images.device)
    total: dict[str, Tensor] = {}
    for draw in range(samples):
        elbo = model(images, given, noise.with_draw(draw, samples), progress)
        for name, value in {DISTORTION: elbo.distortion, **elbo.rates}.items():
            total[name] = total[name] + value / samples if draw else value / samples
    return total


def _importance_weighted(
    model: Model, images: Tensor, given: Condition, noise: Noise, samples: int
) -> dict[str, Tensor]:
    """[B]: the negative importance-weighted bound."""
    log_weights = model.log_weights(images, given, noise, samples)
    return {"iw": math.log(samples) - torch.logsumexp(log_weights, dim=1)}


def _flow(model: Model, images: Tensor, given: Condition, noise: Noise, samples: int) -> dict[str, Tensor]:
    """[B]: the negative probability-flow likelihood, the mean over the draws. Raises TrainingError if it has none."""
    if not isinstance(model, Diffusion):
        raise TrainingError(f"a {type(model).__name__} has no probability flow; evaluate its elbo")
    costs = (model.flow_cost(images, given, noise.with_draw(draw, samples)) / samples for draw in range(samples))
    return {"flow": sum(costs, torch.zeros((), device=images.device))}


def condition(model: Model, labels: Tensor | None) -> Condition:
    """What a model may be conditioned on: the labels, if the set has classes."""
    return {"label": labels} if model.spec.classes and labels is not None else None
