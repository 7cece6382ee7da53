"""The conditions of every image of a set, in memory, so that an image can be given those of others."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from trainer.condition_values import Value, as_value, columns_of, join_values, map_value
from trainer.distributed.interruption import interruption_point
from trainer.distributed.ranks import all_gather_object, world_size
from trainer.errors import TrainingError
from trainer.noise import Noise
from trainer.training.data import Batch

MOST_BYTES = 1 << 30  # of the conditions of all images


@dataclass(frozen=True)
class ConditionTable:
    """A row for each image: what the set has for it. Rows are in the order of the positions."""

    positions: Tensor  # int64 [n], ascending
    values: Mapping[str, Value]  # [n, ...] each

    def __len__(self) -> int:
        return len(self.positions)

    def find(self, positions: Tensor) -> Tensor:
        """int64 [B]: the rows of the images at `positions`; any row for one that is not in the table."""
        return torch.searchsorted(self.positions, positions).clamp(max=len(self) - 1)

    def take(self, rows: Tensor, names: Collection[str]) -> dict[str, Value]:
        """The conditions `names` in `rows` [B]: [B, ...] each."""
        return {name: map_value(lambda column: column[rows], self.values[name]) for name in names}

    def same(self, rows: Tensor, others: Tensor) -> Tensor:
        """bool [B]: whether all conditions in `rows` [B] equal those in the rows `others` [B]."""
        equal = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
        for value in self.values.values():
            for column in columns_of(value):
                equal &= (column[rows] == column[others]).reshape(len(rows), -1).all(1)
        return equal

    def in_order_of(self, seed: int, name: str) -> Tensor:
        """int64 [n]: all rows, shuffled by (seed, name, position): the same on any number of ranks."""
        order = Noise(seed, "evaluate", self.positions).uniform(name).argsort(stable=True)
        return order.to(self.positions.device)


@dataclass(frozen=True)
class PartnerConditions:
    """Another image for each image of a set, whose conditions it is given: no image is its own partner."""

    table: ConditionTable
    seed: int

    def __post_init__(self) -> None:
        if len(self.table) < 2:
            raise TrainingError(f"shuffled conditions: the set has {len(self.table)} image, at least 2 are needed")

    @cached_property
    def partner(self) -> Tensor:
        """int64 [n]: the row of each row's partner: one cycle through all images in shuffled order."""
        order = self.table.in_order_of(self.seed, "partner")
        partner = torch.empty_like(order)
        partner[order] = order.roll(-1)
        return partner

    def take(self, positions: Tensor, names: Collection[str]) -> dict[str, Value]:
        """The conditions `names` of the partners of the images at `positions` [B]."""
        return self.table.take(self.partner[self.table.find(positions)], names)

    @property
    def same(self) -> int:
        """The number of images whose partner has the same conditions: they are given their own."""
        return int(self.table.same(torch.arange(len(self.table), device=self.partner.device), self.partner).sum())


def read_conditions(batches: Iterable[Batch], names: Collection[str]) -> ConditionTable:
    """The conditions `names` of all images of a set, from every rank's part of it, on the device of the batches. All
    ranks together.

    Raises TrainingError if a batch lacks one of them, or if they take more than 1 GiB.
    """
    parts: list[tuple[Tensor, dict[str, Value]]] = []
    size, device = 0, torch.device("cpu")
    for batch in batches:
        counted, device = batch.weights > 0, batch.positions.device
        rows = {name: map_value(lambda column: column[counted].cpu(), _value(batch, name)) for name in names}  # noqa: B023
        parts.append((batch.positions[counted].cpu(), rows))
        size += sum(column.nbytes for value in rows.values() for column in columns_of(value))
        if size * world_size() > MOST_BYTES:
            raise TrainingError(
                f"the conditions {', '.join(names)} of all images take more than {MOST_BYTES >> 30} GiB; "
                "evaluate fewer images"
            )
        interruption_point()
    everything = [part for rank_parts in all_gather_object(parts, None) for part in rank_parts]
    positions = torch.cat([part[0] for part in everything])
    order = positions.argsort()
    values = {
        name: map_value(lambda column: column[order].to(device), join_values([part[1][name] for part in everything]))
        for name in names
    }
    return ConditionTable(positions[order].to(device), values)


def _value(batch: Batch, name: str) -> Value:
    if name not in batch.conditions:
        raise TrainingError(
            f"condition {name}: the images have none; they have {', '.join(batch.conditions) or 'none'}"
        )
    return as_value(batch.conditions[name])
