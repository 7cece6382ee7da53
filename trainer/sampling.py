"""Samples from Python: `trainer.sample(model, 16, label="cat")`, `trainer.sample(model, 16, prompt="a cat")`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trainer.condition_values import Condition, Value, map_value
from trainer.config import Config
from trainer.distributed.device import full_precision
from trainer.models.base import Model, takes_labels
from trainer.noise import Noise
from trainer.prompts import Captions, Prompt, captions_of, encode

Label = int | str


def sample(
    model: Model,
    count: int,
    label: Label | Sequence[Label] | None = None,
    seed: int = 0,
    temperature: float = 1.0,
    batch: int = 64,
    *,
    prompt: Prompt | None = None,
    negative: str | Mapping[str, str] | None = None,
    **options: Any,
) -> Tensor:
    """`count` new images, uint8 levels [count, C, H, W], on the model's device; computed in float32.

    `label`: the number or name of a class, or several of them in turn; None: not conditioned.
    `prompt`: a caption, or several in turn; {"name": ...} for a model with several kinds of captions.
    `negative`: a caption that guidance leads away from, in the place of the unconditional estimate.
    `options`: those that the model's kind has (`python -m jobs.sample --help`), such as `steps` and `guidance` of a
    diffusion. Image i depends on the seed, its label, its prompt and i alone; `jobs.sample` makes the same.

    Warns of a prompt that is cut. Raises ValueError, which names the argument, for what the model does not have.
    """
    numbers, prompts = class_numbers(model, label), captions_of(model, prompt)
    away_from = captions_of(model, negative, "negative")
    chosen = options_for(model, options, bool(numbers or prompts), bool(away_from))
    given = {name: getattr(chosen, name) for name in options}
    conditions, cut = encode_conditions(model, numbers, prompts, away_from)
    for line in cut:
        warnings.warn(line, stacklevel=2)
    return make_samples(model, count, conditions, seed, temperature, batch, given)


@torch.no_grad()
def make_samples(
    model: Model,
    count: int,
    conditions: SampleConditions,
    seed: int = 0,
    temperature: float = 1.0,
    batch: int = 64,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> Tensor:
    """`sample` with arguments that are checked and encoded already."""
    device = next(model.parameters()).device
    images = [torch.empty(0, *model.spec.batch_shape, dtype=torch.uint8, device=device)]
    training = model.training
    model.eval()
    try:
        with full_precision(device):
            for first in range(0, count, batch):
                positions = torch.arange(first, min(first + batch, count), device=device)
                noise = Noise(seed, "sample", positions)
                images.append(model.sample(noise, temperature=temperature, **conditions.at(positions), **options))
    finally:
        model.train(training)
    return torch.cat(images)


class SampleConditions(NamedTuple):
    """What samples are conditioned on, each list in turn: image i has label and values number i mod their counts."""

    labels: tuple[int, ...] = ()
    values: Mapping[str, Value] = {}
    negative: Mapping[str, Value] = {}

    def at(self, positions: Tensor) -> dict[str, Condition]:
        """`condition` of the images at `positions` and, if there is one, `negative`, as arguments of `Model.sample`."""
        given: dict[str, Value] = {}
        if self.labels:
            given["label"] = torch.tensor(self.labels, device=positions.device)[positions % len(self.labels)]
        found: dict[str, Condition] = {"condition": given | _in_turn(self.values, positions) or None}
        return found | {"negative": _in_turn(self.negative, positions)} if self.negative else found


def encode_conditions(
    model: Model, labels: Sequence[int], prompts: Sequence[Captions], negative: Sequence[Captions]
) -> tuple[SampleConditions, list[str]]:
    """The conditions of samples, and a line for each prompt that is cut. Raises ValueError like `prompts.encode`."""
    wanted, unwanted = encode(model, prompts), encode(model, negative, "negative")
    return SampleConditions(tuple(labels), wanted.tokens, unwanted.tokens), wanted.cut + unwanted.cut


def options_for(model: Model, options: Mapping[str, Any], conditioned: bool, negative: bool) -> Config:
    """`Model.sampling_with` for samples with or without conditions and a negative prompt.

    Raises ValueError, named by the option, for what the model does not have or cannot do.
    """
    chosen = model.sampling_with(options, conditioned)
    if negative and not conditioned:
        raise ValueError("negative: needs a prompt, or a label, to guide to")
    guidance = getattr(chosen, "guidance", None)
    if negative and guidance is None:
        raise ValueError(f"negative: a {type(model).__name__} has no guidance")
    if negative and guidance == 1:
        raise ValueError("negative: has no effect at guidance 1; choose another guidance, such as 3")
    return chosen


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


def _in_turn(values: Mapping[str, Value], positions: Tensor) -> dict[str, Value]:
    """The values of the images at `positions`, on their device."""

    def rows(column: Tensor) -> Tensor:
        column = column.to(positions.device)
        return column[positions % len(column)]

    return {name: map_value(rows, value) for name, value in values.items()}
