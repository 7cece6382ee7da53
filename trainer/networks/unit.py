"""Units: the parts of a model that are sharded, recomputed and compiled one by one."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


class Unit(nn.Module):
    """A part of a model whose parameters nothing but its own `forward` uses.

    FSDP2 gathers the weights of one unit at a time, activation checkpointing recomputes it as a whole, and
    `trainer.compile` compiles it. Of nested units only the outermost counts.
    """

    is_unit = True


class UnitSequential(Unit, nn.Sequential):
    """Layers, one after another, as one unit."""


def as_unit(module: M) -> M:
    """Make a module of somebody else's class a unit."""
    module.is_unit = True  # type: ignore[assignment]
    return module


def units(module: nn.Module) -> list[nn.Module]:
    """The outermost units with parameters in `module`, about in the order in which they run."""
    if getattr(module, "is_unit", False):
        return [module] if any(True for _ in module.parameters()) else []
    return [unit for child in module.children() for unit in units(child)]
