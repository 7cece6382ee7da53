"""Bytes that a rank sends in a training step, by ring algorithms: each of n ranks sends (n - 1)/n of what is gathered
or reduced, and twice that where all get the sum (Thakur et al. 2005)."""

from __future__ import annotations

from typing import NamedTuple

from trainer.models.base import Model
from trainer.networks.unit import units
from trainer.sizing.memory import Pass


class Traffic(NamedTuple):
    """Bytes that a rank sends in a step."""

    weights: float  # gathered from the ranks that share a copy of the state
    gradients: float  # to them
    copies: float  # gradients, between the copies of the state

    @property
    def total(self) -> float:
        """Bytes in all."""
        return sum(self)


def traffic(model: Model, at_once: Pass, passes: int) -> Traffic:
    """What a rank sends in a step of `passes` micro-batches."""
    trained = 4 * sum(value.numel() for value in model.parameters() if value.requires_grad)  # float32
    if at_once.shard_over is None:
        return Traffic(0.0, 0.0, 2 * _others(at_once.ranks) * trained)
    over = at_once.shard_over
    in_units = sum(value.numel() * value.element_size() for unit in units(model) for value in unit.parameters())
    between = sum(value.numel() * value.element_size() for value in model.parameters()) - in_units
    gathered = in_units * (0.5 if at_once.bf16 else 1.0) + between
    copies = at_once.ranks // over
    return Traffic(
        weights=2 * passes * _others(over) * gathered,  # for the forward and for the backward pass
        gradients=passes * _others(over) * trained,
        copies=2 * _others(copies) * trained / over,
    )


def _others(ranks: int) -> float:
    return (ranks - 1) / ranks
