"""Samples from Python: `trainer.sample(model, 16, label="cat")`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trainer.condition_values import Condition
from trainer.distributed.device import full_precision
from trainer.models.base import Model, takes_labels
from trainer.noise import Noise

Label = int | str


@torch.no_grad()
def sample(
    model: Model,
    count: int,
    label: Label | Sequence[Label] | None = None,
    seed: int = 0,
    temperature: float = 1.0,
    batch: int = 64,
    **options: Any,
) -> Tensor:
    """`count` new images, uint8 levels [count, C, H, W], on the model's device; computed in float32.

    `label`: the number or name of a class, or several of them in turn; None: not conditioned. `options`: those that
    the model's kind has (`python -m jobs.sample --help`), such as `steps` and `guidance` of a diffusion.
    Image i depends on the seed, its label and i alone; `jobs.sample` makes the same.

    Raises ValueError, which names the argument, for what the model does not have.
    """
    numbers = class_numbers(model, label)
    chosen = model.sampling_with(options, conditioned=bool(numbers))
    given = {name: getattr(chosen, name) for name in options}
    device = next(model.parameters()).device
    images = [torch.empty(0, *model.spec.shape, dtype=torch.uint8, device=device)]
    training = model.training
    model.eval()
    try:
        with full_precision(device):
            for first in range(0, count, batch):
                positions = torch.arange(first, min(first + batch, count), device=device)
                noise = Noise(seed, "sample", positions)
                images.append(model.sample(noise, _condition(numbers, positions), temperature, **given))
    finally:
        model.train(training)
    return torch.cat(images)


def class_numbers(model: Model, label: Label | Sequence[Label] | None) -> list[int]:
    """The numbers of classes given by number or name. Raises ValueError for what the model does not know."""
    if label is None:
        return []
    if not takes_labels(model):
        raise ValueError("label: the model is not conditioned on labels")
    labels = [label] if isinstance(label, int | str) else label
    return [_class_number(model, one) for one in labels]


def class_names_text(model: Model) -> str:
    """The classes that a label may name, for a message: "numbers from 0 to 9, or names: cat, dog"."""
    names = model.class_names
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    listed = f", or names: {', '.join(names[:SHOWN])}{more}" if names else ""
    return f"numbers from 0 to {model.spec.classes - 1}{listed}"


SHOWN = 10  # class names in a message


def _class_number(model: Model, label: Label) -> int:
    names = model.class_names
    if isinstance(label, int) and label in range(model.spec.classes):
        return int(label)
    if isinstance(label, str) and names.count(label) == 1:
        return names.index(label)
    if isinstance(label, str) and label in names:
        same = " and ".join(str(i) for i, name in enumerate(names) if name == label)
        raise ValueError(f"label: classes {same} are both called {label}; give a number")
    raise ValueError(f"label: {label}: the model knows {class_names_text(model)}")


def _condition(numbers: list[int], positions: Tensor) -> Condition:
    """The label of image i is number i mod their count."""
    if not numbers:
        return None
    return {"label": torch.tensor(numbers, device=positions.device)[positions % len(numbers)]}
