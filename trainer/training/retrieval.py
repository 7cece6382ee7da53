"""How well the bound finds the caption of an image among others, and the image of a caption."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.conditions import ConditionUses, none_given
from trainer.distributed.interruption import interruption_point
from trainer.distributed.ranks import all_reduce_sum
from trainer.errors import TrainingError
from trainer.models.base import Model
from trainer.training.condition_table import ConditionTable
from trainer.training.data import Batch
from trainer.training.image_bounds import Estimate, condition_by_use, evaluation_mode
from trainer.training.paired import standard_error


class Share(NamedTuple):
    """A share of the images, and its standard error over the groups."""

    mean: float
    standard_error: float


class Retrieval(NamedTuple):
    """Among K: chance is 1 / K."""

    k: int
    images: int
    duplicates: int  # images with the same conditions as another of their group
    caption: Share  # images whose own caption has the smallest bound
    image: Share  # captions whose own image has the smallest bound: prefers images that are easy under any caption
    image_by_gain: Share | None  # captions whose own image gains most over the bound without captions


def bounds_in_groups(
    model: Model,
    batches: Iterable[Batch],
    estimate: Estimate,
    uses: ConditionUses,
    table: ConditionTable,
    k: int,
    without: bool,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[Tensor, Tensor]:
    """Bounds float64 [G, K, K] nats, of the images of each group (rows) given the conditions of each of them (columns)
    by the same noise; and [G, K] without conditions, NaN unless `without`. On every rank; all ranks together.

    The groups are of `k` images, by `estimate.seed`; up to k - 1 images are in none. `progress` is called after each
    batch with the number of bounds that this rank has computed.

    Raises TrainingError if there are fewer than `k` images, or the model has no such bound.
    """
    estimate.check(model)
    members = groups_of(table, k, estimate.seed)
    rows = members.flatten()
    group, slot = torch.full((2, len(table)), -1, device=rows.device)
    group[rows] = torch.arange(len(members), device=rows.device).repeat_interleave(k)
    slot[rows] = torch.arange(k, device=rows.device).repeat(len(members))
    names = [name for name, use in uses.items() if use == "given"]
    bounds = torch.zeros(len(members), k, k + 1, dtype=torch.float64, device=rows.device)
    done = 0
    with evaluation_mode(model):
        for batch in batches:
            own = table.find(batch.positions)
            counted = (batch.weights > 0) & (group[own] >= 0)
            at, place = group[own], slot[own]  # the rows of -1 are computed with any group, and not kept
            fixed = condition_by_use(model, batch, uses) or {}
            for column in range(k):
                given = fixed | table.take(members[at, column], names)
                nats = estimate.nats(model, batch, given)
                bounds[at[counted], place[counted], column] = nats[counted]
            if without:
                nats = estimate.nats(model, batch, condition_by_use(model, batch, none_given(uses)))
                bounds[at[counted], place[counted], k] = nats[counted]
            done += len(own) * (k + without)
            progress(done)
            interruption_point()
    found = all_reduce_sum(bounds).cpu()
    return found[:, :, :k], found[:, :, k] if without else torch.full(found.shape[:2], torch.nan)


def groups_of(table: ConditionTable, k: int, seed: int) -> Tensor:
    """int64 [G, K]: rows of the table in groups, by (seed, position). Raises TrainingError if there is no group."""
    if len(table) < k:
        raise TrainingError(f"retrieval among {k}: there are {len(table)} images")
    order = table.in_order_of(seed, "groups")
    return order[: len(order) // k * k].reshape(-1, k)


def retrieval(bounds: Tensor, without: Tensor, same: Tensor) -> Retrieval:
    """From `bounds_in_groups`; `same` bool [G, K, K]: which captions of a group are equal.

    Ties count as one over their number. For an image, captions equal to its own are ties; an image with the same
    caption as another may lose to that one.
    """
    # The same caption in another row of a batch may differ in the last bits: a tie all the same.
    own = bounds.diagonal(dim1=1, dim2=2)
    by_caption = torch.where(same, own[:, :, None], bounds)
    gain = bounds - without[:, :, None]
    others = same & ~torch.eye(bounds.shape[1], dtype=torch.bool)
    return Retrieval(
        k=bounds.shape[1],
        images=bounds.shape[0] * bounds.shape[1],
        duplicates=int(others.any(2).sum()),
        caption=_share(by_caption),
        image=_share(bounds.transpose(1, 2)),
        image_by_gain=None if without.isnan().all() else _share(gain.transpose(1, 2)),
    )


def _share(bounds: Tensor) -> Share:
    """How often the diagonal of [G, K, K] is the smallest of its row."""
    smallest = bounds.min(2, keepdim=True).values
    won = (bounds.diagonal(dim1=1, dim2=2) == smallest[:, :, 0]).double() / (bounds == smallest).sum(2)
    groups = won.mean(1)
    return Share(groups.mean().item(), standard_error(groups))
