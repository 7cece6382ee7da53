"""A vector per image, from a .npy member: an embedding that another encoder made."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datasets.conditions.condition import Arrays, Field, Sample, SingleChoice
from datasets.errors import DataError
from datasets.npy import decode_floats, floats_shape, read_npy_header


@dataclass(frozen=True)
class VectorCondition(SingleChoice):
    """float32 [n, size]; zeros where a sample has no such member: unknown, or bad if it `must_exist`."""

    name: str
    member: str  # extension
    size: int
    must_exist: bool = False

    @property
    def members(self) -> tuple[str, ...]:
        return (self.member,)

    @property
    def layout(self) -> dict[str, Field]:
        return {self.name: Field(np.dtype(np.float32), (self.size,))}

    def read(self, sample: Sample, choice: int, arrays: Arrays, row: int) -> str:
        if (data := sample.member(self.member)) is None:
            if self.must_exist:
                raise DataError(f"{self.member}: is missing")
            arrays[self.name][row] = 0
            return "missing"
        arrays[self.name][row] = decode_vector(data, self.size, self.member)
        return ""


def decode_vector(data: bytes | memoryview, size: int, member: str) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """float32 [size] from a .npy file of that many finite floats, of any shape and any type of `datasets.npy`.

    Raises DataError.
    """
    vector = checked_floats(data, member, lambda shape: math.prod(shape) == size, f"{size} floats").reshape(size)
    if not np.isfinite(vector).all():
        raise DataError(f"{member}: not all of its numbers are finite")
    return vector


def checked_floats(
    data: bytes | memoryview, member: str, fits: Callable[[tuple[int, ...]], bool], expected: str
) -> NDArray[np.float32]:
    """The floats of a .npy file whose shape fits; `expected` is that shape in words. Raises DataError."""
    try:
        header = read_npy_header(data)
    except DataError as error:
        raise DataError(f"{member}: {error}") from error
    shape = floats_shape(header)
    if shape is None or not fits(shape):
        found = " x ".join(map(str, shape or header.shape)) or "no axes"
        raise DataError(f"{member}: {header.dtype} of {found}, expected {expected}")
    return decode_floats(data, header)
