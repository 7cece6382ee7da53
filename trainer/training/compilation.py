"""torch.compile of a whole model, or of its units one by one."""

from __future__ import annotations

from typing import Any, Literal

import torch

from trainer.models.base import Model
from trainer.networks.unit import units

Compile = bool | Literal["units"]


def compile_model(model: Model, choice: Compile, sharding: str, **options: Any) -> None:
    """Compile a model in place, before it is sharded: its units under FSDP2, whose hooks between them stay as they are.

    Units that are alike share one graph, with their weights as inputs. `options`: of torch.compile.
    """
    if choice == "units" or (choice and sharding == "fsdp"):
        for unit in units(model):
            unit.forward = torch.compile(unit.forward, **options)
    elif choice:
        model.compile(**options)
