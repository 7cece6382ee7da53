"""A sequence of vectors per image, from a .npy member: the tokens of a caption through another encoder."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datasets.conditions.captions import IDS, LENGTHS
from datasets.conditions.condition import Arrays, Field, Sample, SingleChoice
from datasets.conditions.vectors import checked_floats
from datasets.errors import DataError


@dataclass(frozen=True)
class SequenceCondition(SingleChoice):
    """NAME.ids float16 [n, max_tokens, size], padded by zeros, and NAME.lengths int32 [n]; length 0: unknown."""

    name: str
    member: str  # extension
    size: int
    max_tokens: int

    @property
    def members(self) -> tuple[str, ...]:
        return (self.member,)

    @property
    def layout(self) -> dict[str, Field]:
        vectors = Field(np.dtype(np.float16), (self.max_tokens, self.size))
        return {f"{self.name}.{IDS}": vectors, f"{self.name}.{LENGTHS}": Field(np.dtype(np.int32), ())}

    def read(self, sample: Sample, choice: int, arrays: Arrays, row: int) -> str:
        vectors, lengths = arrays[f"{self.name}.{IDS}"], arrays[f"{self.name}.{LENGTHS}"]
        vectors[row], lengths[row] = 0, 0
        if (data := sample.member(self.member)) is None:
            return "missing"
        found = decode_sequence(data, self.size, self.member)
        count = min(len(found), self.max_tokens)
        vectors[row, :count], lengths[row] = found[:count], count
        if not count:
            return "empty"
        return "truncated" if count < len(found) else ""


def decode_sequence(data: bytes | memoryview, size: int, member: str) -> NDArray[np.float16]:
    """float16 [T, size] from a .npy file of floats of that shape, in any type of `datasets.npy`. Raises DataError."""
    found = checked_floats(data, member, lambda shape: len(shape) == 2 and shape[1] == size, f"floats of T x {size}")
    with np.errstate(over="ignore"):
        vectors = found.astype(np.float16)
    if not np.isfinite(vectors).all():
        raise DataError(f"{member}: not all of its numbers are finite in float16")
    return vectors
