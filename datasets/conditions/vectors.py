"""A vector per image, from a .npy member: an embedding that another encoder made."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np

from datasets.conditions.condition import Arrays, Field, Sample, SingleChoice
from datasets.errors import DataError

_HEADER = 1 << 12  # bytes that the header of a .npy may have


@dataclass(frozen=True)
class VectorCondition(SingleChoice):
    """float32 [n, size]; zeros where a sample has no such member: unknown."""

    name: str
    member: str  # extension
    size: int

    @property
    def members(self) -> tuple[str, ...]:
        return (self.member,)

    @property
    def layout(self) -> dict[str, Field]:
        return {self.name: Field(np.dtype(np.float32), (self.size,))}

    def read(self, sample: Sample, choice: int, arrays: Arrays, row: int) -> str:
        if (data := sample.member(self.member)) is None:
            arrays[self.name][row] = 0
            return "missing"
        arrays[self.name][row] = decode_vector(data, self.size, self.member)
        return ""


def decode_vector(data: bytes | memoryview, size: int, member: str) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """float32 [size] from the bytes of a .npy file of that many finite floats. Raises DataError."""
    limit = 2 * _HEADER + 8 * size
    if len(data) > limit:
        raise DataError(f"{member}: {len(data):,} bytes for a vector of {size} numbers")
    try:
        values = np.lib.format.read_array(io.BytesIO(bytes(data)), allow_pickle=False, max_header_size=_HEADER)
    except (ValueError, EOFError, OSError, OverflowError, MemoryError) as error:
        raise DataError(f"{member}: not a .npy file ({error})") from error
    if values.shape not in ((size,), (1, size)) or values.dtype.kind != "f":
        shape = " x ".join(map(str, values.shape)) or "no axes"
        raise DataError(f"{member}: {values.dtype} of {shape}, expected {size} floats")
    vector = values.reshape(size).astype(np.float32)
    if not np.isfinite(vector).all():
        raise DataError(f"{member}: not all of its numbers are finite")
    return vector
