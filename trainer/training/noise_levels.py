"""The diffusion's part of the bound by noise level, for several uses of the conditions by the same noise."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.condition_values import Condition
from trainer.conditions import ConditionUses
from trainer.distributed.device import report_precision
from trainer.distributed.interruption import interruption_point
from trainer.distributed.ranks import all_reduce_sum
from trainer.errors import TrainingError
from trainer.models.base import Model, NoiseLevels
from trainer.training.condition_table import PartnerConditions
from trainer.training.data import Batch
from trainer.training.image_bounds import Estimate, condition_by_use, evaluation_mode

FLUX_LEVELS = 8


class Figures(NamedTuple):
    """Mean over the images and its standard error."""

    mean: float
    standard_error: float


class Level(NamedTuple):
    """One bin of noise levels, or one fixed level."""

    name: str
    log_snr: tuple[float, float]  # at its ends
    values: dict[str, Figures]  # by use of the conditions
    differences: dict[str, Figures]  # each use but the first, less the first: paired


class LevelReport(NamedTuple):
    """By noise level; `total` is the sum of the bins, or the mean of the fixed levels."""

    images: int
    unit: str
    levels: list[Level]
    total: Level


Choice = tuple[str, ConditionUses]
_Values = Callable[[Tensor, Condition, Tensor], Tensor]


def noise_levels_of(model: Model) -> NoiseLevels:
    """Raises TrainingError for a model that has none."""
    if model.noise_levels is None:
        raise TrainingError(f"a {type(model).__name__} has no noise levels")
    return model.noise_levels


def diffusion_by_level(
    model: Model,
    batches: Iterable[Batch],
    estimate: Estimate,
    bins: int,
    uses: Sequence[Choice],
    partners: PartnerConditions | None = None,
) -> LevelReport:
    """Nats an image of each of `bins` equal parts of t in [0, 1). All ranks together.

    An image has one t in each bin: the times of its `bins` draws of the bound (`Noise.stratified`), so that the sum
    over the bins is the diffusion term of the bound with as many draws.

    Raises TrainingError for a model without noise levels.
    """
    levels = noise_levels_of(model)

    def values(images: Tensor, condition: Condition, positions: Tensor) -> Tensor:
        """float64 [B, bins] nats."""
        found = torch.zeros(len(images), bins, dtype=torch.float64, device=images.device)
        rows = torch.arange(len(images), device=images.device)
        for draw in range(bins):
            noise = estimate.noise(positions).with_draw(draw, bins)
            t = noise.stratified("t")
            gamma, weight = levels.level(t)
            nats = 0.5 * weight * levels.squared_error(images, condition, noise, gamma)
            found[rows, (t * bins).long().clamp(max=bins - 1)] = nats.double() / bins
        return found

    columns = _moments(model, batches, estimate, uses, partners, values, torch.sum)
    with torch.no_grad():
        device = next(iter(model.parameters())).device
        edges = [-levels.level(torch.tensor([i / bins], device=device))[0].item() for i in range(1, bins)]
    edges = [-levels.ends[0], *edges, -levels.ends[1]]
    names = [f"{i / bins:.3g} to {(i + 1) / bins:.3g}" for i in range(bins)]
    return _report(columns, uses, "nats", names, list(itertools.pairwise(edges)))


def velocity_error_by_level(
    model: Model,
    batches: Iterable[Batch],
    estimate: Estimate,
    uses: Sequence[Choice],
    partners: PartnerConditions | None = None,
) -> LevelReport:
    """The loss of a rectified flow at 8 equidistant times, as MLPerf Training's FLUX.1 benchmark validates by.

    z = (1 - t) x + t eps and v = eps - x (Esser et al. 2024, arXiv 2403.03206), so SNR = ((1 - t) / t)^2, and the error
    of v is that of eps over 1 - t = 1 / (1 + exp(gamma / 2)); the mean of its square over the dimensions of x. The
    benchmark's README has "validation loss averaged over 8 equidistant time steps" and not where these are: here the
    middles of eight equal parts, t = (i + 1/2) / 8. Levels beyond the ends of the model's schedule are taken at the
    ends.

    Raises TrainingError for a model without noise levels.
    """
    levels = noise_levels_of(model)
    times = [(i + 0.5) / FLUX_LEVELS for i in range(FLUX_LEVELS)]
    gammas = [min(max(2 * math.log(t / (1 - t)), levels.ends[0]), levels.ends[1]) for t in times]

    def values(images: Tensor, condition: Condition, positions: Tensor) -> Tensor:
        """float64 [B, 8] mean squared errors."""
        found, dimensions = [], levels.dimensions(images).clamp(min=1)
        for i, gamma in enumerate(gammas):
            noise = estimate.noise(positions).with_draw(i, FLUX_LEVELS)
            at = torch.full((len(images),), gamma, dtype=noise.dtype, device=images.device)
            error = levels.squared_error(images, condition, noise, at)
            found.append(error.double() * (1 + math.exp(gamma / 2)) ** 2 / dimensions)
        return torch.stack(found, 1)

    columns = _moments(model, batches, estimate, uses, partners, values, torch.mean)
    names = [f"{t:g}" for t in times]
    return _report(columns, uses, "mean squared error of v", names, [(-gamma, -gamma) for gamma in gammas])


def _moments(
    model: Model,
    batches: Iterable[Batch],
    estimate: Estimate,
    uses: Sequence[Choice],
    partners: PartnerConditions | None,
    values: _Values,
    total: Callable[..., Tensor],
) -> Tensor:
    """float64 [1 + 4, uses, levels + 1] over all images: their number; sums and sums of squares of the values, and of
    the differences to the first use. The last level is the `total` of all.
    """
    sums = torch.zeros(0)
    with evaluation_mode(model):
        for batch in batches:
            found = []
            for _, use in uses:
                given = condition_by_use(model, batch, use, partners)
                with report_precision(estimate.precision, batch.images.device):
                    levels = values(batch.images, given, batch.positions)
                found.append(torch.cat([levels, total(levels, dim=1, keepdim=True)], 1))
            table = torch.stack(found, 1)[batch.weights > 0]  # [n, uses, levels + 1]
            difference = table - table[:, :1]
            part = torch.stack([torch.ones_like(table), table, table**2, difference, difference**2]).sum(1)
            sums = part if sums.numel() == 0 else sums + part
            interruption_point()
    return all_reduce_sum(sums).cpu()


def _report(
    sums: Tensor, uses: Sequence[Choice], unit: str, names: list[str], log_snr: list[tuple[float, float]]
) -> LevelReport:
    count, names = int(sums[0, 0, 0]), [*names, "all"]
    log_snr = [*log_snr, (log_snr[0][0], log_snr[-1][1])]

    def figures(first: int, use: int, level: int) -> Figures:
        mean = sums[first, use, level].item() / count
        variance = max(sums[first + 1, use, level].item() / count - mean**2, 0.0)
        return Figures(mean, math.sqrt(variance / count))

    levels = [
        Level(
            name,
            log_snr[i],
            {use: figures(1, j, i) for j, (use, _) in enumerate(uses)},
            {use: figures(3, j, i) for j, (use, _) in enumerate(uses) if j},
        )
        for i, name in enumerate(names)
    ]
    return LevelReport(count, unit, levels[:-1], levels[-1])
