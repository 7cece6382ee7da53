"""Which conditions a model is given for a figure: all of them, none, or a choice by name; and how figures say so."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Literal, get_args

from trainer.errors import TrainingError

ConditionUse = Literal["given", "none", "shuffled"]
"""given: what the data set has for the image. none: unknown, as where training hides a condition. shuffled: what it has
for another image."""

ConditionUses = Mapping[str, ConditionUse]
"""By name of the condition; empty for a model without conditions."""


def all_given(names: Iterable[str]) -> dict[str, ConditionUse]:
    """Every condition as the data set has it."""
    return dict.fromkeys(names, "given")


def none_given(names: Collection[str]) -> dict[str, ConditionUse]:
    """Every condition left out."""
    return dict.fromkeys(names, "none")


def given_names(uses: ConditionUses) -> list[str]:
    """The conditions that the model is given in some form."""
    return [name for name, use in uses.items() if use != "none"]


def shuffled_names(uses: ConditionUses) -> list[str]:
    """The conditions that images are given from other images of the set."""
    return [name for name, use in uses.items() if use == "shuffled"]


def parse_uses(text: str, names: Collection[str]) -> dict[str, ConditionUse]:
    """The uses of the conditions `names` that a text describes: `given`, `none` or `shuffled` for all, or by name,
    separated by commas: `label=none,caption=shuffled`. Conditions that it does not name are given.

    Raises TrainingError for a use or a condition that does not exist.
    """
    uses = all_given(names)
    known_uses: tuple[ConditionUse, ...] = get_args(ConditionUse)
    for part in text.split(","):
        name, equals, word = part.strip().rpartition("=")
        use = next((known for known in known_uses if known == word), None)
        if use is None:
            raise TrainingError(f"condition {part}: one of {', '.join(known_uses)}, or NAME=one of them")
        if equals and name not in names:
            known = f"the model has {', '.join(names)}" if names else "the model has no conditions"
            raise TrainingError(f"condition {name}: {known}")
        uses |= dict.fromkeys([name] if equals else names, use)
    return uses


def training_in_words(hidden: Mapping[str, float]) -> str:
    """What a training bound is conditional on, from the probability with which each condition is hidden."""
    uses = all_given(hidden)
    parts = [f"{name} hidden from {share:.0%} of the images" for name, share in hidden.items() if share]
    return in_words(uses) + (f" ({', '.join(parts)})" if parts else "")


def in_words(uses: ConditionUses) -> str:
    """What a figure is conditional on: "unconditional", "conditional on label", "unconditional (label left out)",
    "conditional on another image's caption".
    """
    given = [f"another image's {name}" if use == "shuffled" else name for name, use in uses.items() if use != "none"]
    hidden = [name for name, use in uses.items() if use == "none"]
    left_out = f" ({' and '.join(hidden)} left out)" if hidden else ""
    return (f"conditional on {' and '.join(given)}" if given else "unconditional") + left_out
