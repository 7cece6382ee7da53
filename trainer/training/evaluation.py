"""The bound over a whole set: sums and counts in float64, every image once, on any number of ranks."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.conditions import ConditionUses, in_words, parse_uses
from trainer.distributed.device import ReportPrecision
from trainer.distributed.interruption import interruption_point
from trainer.distributed.ranks import all_reduce_sum, rank, world_size
from trainer.elbo import bits_per_dimension
from trainer.models.base import DISTORTION, Model, known_conditions
from trainer.training.condition_table import PartnerConditions
from trainer.training.data import Batch
from trainer.training.image_bounds import Estimate, condition_by_use, evaluation_mode

WORST = 10  # images that an evaluation names
MOST = 256  # images of a rank in one batch
COLLAPSED = 0.01  # nats an image; a level with a smaller rate counts as unused


class ImageBound(NamedTuple):
    """The bound of one image."""

    position: int  # in the set
    nats: float
    terms: dict[str, float]  # of the bound, nats


class Evaluation(NamedTuple):
    """Means over a set, in nats an image."""

    images: int
    nats: float  # the negative bound
    standard_error: float  # of `nats`, over the images
    distortion: float  # NaN for a bound without this term
    rates: dict[str, float]
    dimensions: float  # D of an image, the mean over the set: bits per dimension are total bits / total dimensions
    is_density: bool
    bound: str = "elbo"
    precision: ReportPrecision = "fp32"
    conditions: ConditionUses = {}  # by name, of those that the model takes and its data set has
    worst: tuple[ImageBound, ...] = ()  # the images with the largest bounds, the largest first
    ratio_error: float | None = (
        None  # of nats per dimension, times `dimensions`, where D differs; None: `standard_error`
    )

    @property
    def bpd(self) -> float:
        """The negative bound in bits per dimension; NaN for a density, which has no place on that axis."""
        return math.nan if self.is_density else bits_per_dimension(self.nats, self.dimensions)

    @property
    def bpd_error(self) -> float:
        """Standard error of `bpd` over the images: of the ratio of the sums if images differ in D."""
        error = self.standard_error if self.ratio_error is None else self.ratio_error
        return bits_per_dimension(error, self.dimensions)

    @property
    def collapsed(self) -> list[str]:
        """Levels whose posterior equals the prior: they carry almost no information about the image."""
        return [name for name, rate in self.rates.items() if name.startswith("z") and abs(rate) < COLLAPSED]

    def row(self, prefix: str) -> dict[str, float]:
        """The figures by their names in the metrics, `prefix`/..."""
        row = {f"{prefix}/nats": self.nats, f"{prefix}/standard_error": self.standard_error}
        if not self.is_density:
            row[f"{prefix}/bpd"] = self.bpd
        if self.ratio_error is not None:
            row |= {f"{prefix}/bpd_error": self.bpd_error, f"{prefix}/dimensions": self.dimensions}
        if self.rates:
            row[f"{prefix}/distortion"] = self.distortion
        return row | {f"{prefix}/rate/{name}": rate for name, rate in self.rates.items()}

    def __str__(self) -> str:
        error = self.standard_error
        if self.is_density:
            return f"{self.nats:.3f} ± {error:.3f} nats (a density), {in_words(self.conditions)}, {self.precision}"
        figures = f"{self.bpd:.4f} ± {self.bpd_error:.4f} bpd ({self.nats:.2f} nats)"
        return f"{figures}, {in_words(self.conditions)}, {self.precision}"


def evaluate(
    model: Model,
    batches: Iterable[Batch],
    seed: int,
    draws: int = 1,
    bound: str = "elbo",
    precision: ReportPrecision = "fp32",
    conditions: str = "given",
    partners: PartnerConditions | None = None,
) -> Evaluation:
    """The bound of every image of `batches`, this rank's part of the set. All ranks together, with as many batches.

    `bound` is one of `model.bounds`, with `draws` of the latents of each image. fp32 means float32 throughout, without
    TF32, whatever the model was trained in. `conditions`: which of its conditions the model is given (`parse_uses`);
    `partners`: the conditions of other images, for those that are shuffled. There is an interruption point after every
    batch.

    Raises TrainingError if the model does not have this bound, or not these conditions.
    """
    estimate = Estimate(seed, draws, bound, precision)
    estimate.check(model)
    uses = parse_uses(conditions, known_conditions(model))
    names: list[str] = []
    sums = worst = torch.zeros(0)
    with evaluation_mode(model):
        for batch in batches:
            terms = estimate.terms(model, batch, condition_by_use(model, batch, uses, partners))
            names = list(terms)
            part = _sums(list(terms.values()), model.spec.dimensions_of(batch.images), batch.weights > 0)
            sums = part if sums.numel() == 0 else sums + part
            rows = _rows(list(terms.values()), batch)
            worst = _largest(rows if worst.numel() == 0 else torch.cat([worst, rows]))
            interruption_point()
    count, total, squares, dimensions, their_squares, products, *means = all_reduce_sum(sums).tolist()
    mean, ratio = total / count, total / dimensions
    residuals = squares - 2 * ratio * products + ratio**2 * their_squares  # of nats - ratio * D
    figures = {name: value / count for name, value in zip(names, means, strict=True)}
    distortion = figures.pop(DISTORTION, math.nan)
    return Evaluation(
        images=round(count),
        nats=mean,
        standard_error=math.sqrt(max(squares / count - mean**2, 0.0) / count),
        distortion=distortion,
        rates=figures if DISTORTION in names else {},
        dimensions=dimensions / count,
        is_density=model.is_density,
        bound=bound,
        precision=precision,
        conditions=uses,
        ratio_error=None if model.spec.patches is None else math.sqrt(max(residuals, 0.0)) / count,
        worst=_named_bounds(_largest(_of_all_ranks(worst)), names),
    )


def batch_size(micro_batch: int | None, global_batch: int, ranks: int) -> int:
    """Images of a rank in one batch of an evaluation: what a rank can also train on, at most 256 if not chosen."""
    return micro_batch or max(1, min(MOST, global_batch // ranks))


def _rows(terms: list[Tensor], batch: Batch) -> Tensor:
    """float64 [B, 2 + terms]: position, bound and each term; the bound of padding is -inf."""
    columns = [term.double() for term in terms]
    nats = torch.where(batch.weights > 0, torch.stack(columns).sum(0), -torch.inf)
    return torch.stack([batch.positions.double(), nats, *columns], dim=1)


def _largest(rows: Tensor) -> Tensor:
    """The WORST rows [n, 2 + terms] with the largest bounds, the largest first; NaN counts as larger than any."""
    nats = torch.nan_to_num(rows[:, 1], nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
    return rows[nats.argsort(descending=True, stable=True)[:WORST]]


def _of_all_ranks(rows: Tensor) -> Tensor:
    """The rows of all ranks, [ranks * WORST, 2 + terms]; missing ones have the bound -inf. All ranks together."""
    table = rows.new_zeros(world_size(), WORST, rows.shape[1])
    mine = table[rank()]
    mine[:, 1] = -torch.inf
    mine[: len(rows)] = rows
    return all_reduce_sum(table).flatten(0, 1)


def _named_bounds(rows: Tensor, names: list[str]) -> tuple[ImageBound, ...]:
    return tuple(
        ImageBound(int(position), nats, dict(zip(names, terms, strict=True)))
        for position, nats, *terms in rows.tolist()
        if nats != -math.inf
    )


def _sums(terms: list[Tensor], dimensions: Tensor, counted: Tensor) -> Tensor:
    """float64 [6 + terms]: images, bounds, their squares, D, its squares, bounds times D, and each term.

    Summed over the `counted` images [B].
    """
    columns = [term.double() for term in terms]
    nats = torch.stack(columns).sum(0)
    moments = [torch.ones_like(nats), nats, nats**2, dimensions, dimensions**2, nats * dimensions]
    return torch.stack([*moments, *columns])[:, counted].sum(1)
