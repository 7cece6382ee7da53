"""Activation checkpointing (Chen et al. 2016, arXiv 1604.06174): units whose activations the backward pass computes
again instead of keeping them. Results are the same to the bit: all randomness is a function of the position."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from pydantic import PositiveInt
from torch import nn
from torch.utils.checkpoint import checkpoint

from cluster.storage.sizes import Bytes, format_bytes
from trainer.config import Config
from trainer.models.base import Model
from trainer.networks.unit import units
from trainer.tracking.flops import measure


class EveryNth(Config):
    """Recompute one unit of every few."""

    every: PositiveInt
    """n: the units n, 2n, ... are recomputed."""


class Budget(Config):
    """Recompute as few units as possible."""

    budget: Bytes
    """Largest size of the activations that a rank keeps for one micro-batch, as predicted."""


ActivationCheckpointing = Literal["none", "all"] | EveryNth | Budget


def recomputed_units(
    model: Model, choice: ActivationCheckpointing, images: int, precision: torch.dtype
) -> tuple[list[nn.Module], str]:
    """The units to recompute for `images` at once, and a line for the user ("": nothing to say)."""
    found = units(model)
    if choice == "none":
        return [], ""
    if choice == "all":
        return found, ""
    if isinstance(choice, EveryNth):
        return found[choice.every - 1 :: choice.every], ""
    costs = measure(model, precision)
    savings = [images * max(unit.kept - unit.inputs, 0) for unit in costs.units]
    order = sorted(range(len(found)), key=lambda number: -savings[number])
    left, taken = images * costs.activations, 0
    while left > choice.budget and taken < len(order) and savings[order[taken]] > 0:
        left -= savings[order[taken]]
        taken += 1
    line = (
        f"activation checkpointing: {taken} of {len(found)} units are recomputed, {format_bytes(left)} of activations "
        f"are kept of {format_bytes(images * costs.activations)}"
    )
    if left > choice.budget:
        line += f", more than the budget of {format_bytes(choice.budget)}; lower trainer.micro_batch"
    return [found[number] for number in sorted(order[:taken])], line


def recompute(unit: nn.Module) -> None:
    """Let the backward pass compute the unit's activations again, in place."""
    unit.forward = _recomputed(unit.forward)


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def recomputed(*inputs: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*inputs, **named)
        return checkpoint(forward, *inputs, use_reentrant=False, preserve_rng_state=False, **named)

    return recomputed
