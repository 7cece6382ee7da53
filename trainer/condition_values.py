"""What images are conditioned on, as tensors with a row per image: classes, vectors, and captions as tokens."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Tokens(NamedTuple):
    """Captions as the ids of their tokens, or as vectors that an encoder made of these."""

    ids: Tensor  # int32 [B, T], or float16 [B, T, size]; 0 after the end
    lengths: Tensor  # int32 [B]; 0: no caption

    @property
    def present(self) -> Tensor:
        """bool [B, T]: false for padding."""
        return torch.arange(self.ids.shape[1], device=self.ids.device) < self.lengths[:, None]


class TokenArrays(Protocol):
    """Tokens as data hands them over."""

    @property
    def ids(self) -> Tensor:
        """int32 [B, T], or float16 [B, T, size]"""

    @property
    def lengths(self) -> Tensor:
        """int32 [B]"""


class TextSpec(NamedTuple):
    """The captions of a data set under one name."""

    name: str
    vocabulary: int  # ids are below it
    max_tokens: int  # T


Value = Tensor | Tokens
Condition = dict[str, Value] | None
"""{"label": int64 [B], "caption": Tokens, "clip": float32 [B, size]}; a name that is missing, or None: unknown."""


def map_value(function: Callable[[Tensor], Tensor], value: Value) -> Value:
    """`function` applied to the tensors of a value."""
    return function(value) if isinstance(value, Tensor) else Tokens(*map(function, value))


def as_value(given: Tensor | TokenArrays) -> Value:
    """A value as data hands it over, as a model takes it."""
    return given if isinstance(given, Tensor) else Tokens(given.ids, given.lengths)


def columns_of(value: Value) -> tuple[Tensor, ...]:
    """The tensors of a value."""
    return (value,) if isinstance(value, Tensor) else tuple(value)


def join_values(parts: Sequence[Value]) -> Value:
    """The rows of several values of one condition, one after the other."""
    columns = [torch.cat(column) for column in zip(*map(columns_of, parts), strict=True)]
    return columns[0] if isinstance(parts[0], Tensor) else Tokens(*columns)


def as_condition(given: Mapping[str, Tensor | TokenArrays], names: Collection[str]) -> Condition:
    """The conditions `names` among those of a batch; None if there are none."""
    return {name: as_value(value) for name, value in given.items() if name in names} or None


def hidden(value: Value, where: Tensor) -> Value:
    """`value` with the rows where bool [B] is true replaced by unknown: class -1, no tokens, a vector of zeros."""
    if isinstance(value, Tokens):
        return Tokens(value.ids, torch.where(where, 0, value.lengths))
    unknown = 0 if value.is_floating_point() else -1
    return torch.where(where.reshape(-1, *[1] * (value.dim() - 1)), unknown, value)
