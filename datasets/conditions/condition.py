"""The interface of conditions: all that reading and loading know of one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from datasets.order.order import Integers

Arrays = dict[str, NDArray[Any]]


class Field(NamedTuple):
    """An array with a row per image of a batch."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]  # of a row


class Sample(NamedTuple):
    """What a condition may read of a sample."""

    member: Callable[[str], memoryview | None]
    """The bytes of the member with an extension; None: the sample has none. Raises DataError if they are damaged."""
    size: tuple[int, int]
    """(height, width) of the image as it was decoded, pixels."""


class Condition(Protocol):
    """One condition of a set. Small, since loader processes get a copy by pickle."""

    @property
    def name(self) -> str:
        """Its key in `data.conditions`."""

    @property
    def members(self) -> tuple[str, ...]:
        """Extensions of the members that it reads."""

    @property
    def choices(self) -> int:
        """From how many values one is chosen for each position: captions from different members. Usually 1."""

    @property
    def layout(self) -> dict[str, Field]:
        """Its arrays in a batch; zero in the rows of padding and of quarantined images."""

    def choose(self, positions: Integers) -> Integers:
        """Which of the choices each position has, int64 [n]: a function of (seed, position)."""

    def read(self, sample: Sample, choice: int, arrays: Arrays, row: int) -> str:
        """Write a value to a row of each array. Returns why the value is unknown, in a word; "" if it is known.

        Raises DataError where the sample must not be used.
        """

    def adjust(self, arrays: Arrays, rows: Integers, positions: Integers) -> None:
        """Complete rows by what depends on the position alone, in place."""


class SingleChoice:
    """The parts of a condition that has one value per image, whatever its position."""

    choices = 1

    def choose(self, positions: Integers) -> Integers:
        """Zeros."""
        return np.zeros(len(positions), dtype=np.int64)

    def adjust(self, arrays: Arrays, rows: Integers, positions: Integers) -> None:
        """Nothing."""


def zeros(conditions: tuple[Condition, ...], *size: int) -> Arrays:
    """Arrays of [*size, *shape] for all conditions, filled with zeros."""
    return {
        name: np.zeros((*size, *field.shape), field.dtype)
        for condition in conditions
        for name, field in condition.layout.items()
    }
