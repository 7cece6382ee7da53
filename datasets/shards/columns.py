"""Columns of Arrow tables as numpy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def extensions_of(members: pa.Table) -> set[str]:
    """The extensions of the members that a member table has."""
    return {name.removesuffix(".offset") for name in members.column_names if name.endswith(".offset")}


def numbers(column: pa.ChunkedArray, missing: int = 0) -> NDArray[Any]:
    """A column of integers as an array of the same type, without a copy if it is a single chunk.

    Arrow's own conversion imports pandas if it is installed, which costs a loader process a second.
    """
    parts = [_numbers(chunk, missing) for chunk in column.chunks if len(chunk)]
    dtype = np.dtype(str(column.type))
    return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, dtype), *parts])


def _numbers(chunk: pa.Array, missing: int) -> NDArray[Any]:
    here = slice(chunk.offset, chunk.offset + len(chunk))
    valid, data = chunk.buffers()
    values = np.frombuffer(data, np.dtype(str(chunk.type)))[here]
    if not chunk.null_count:
        return values
    bits = np.unpackbits(np.frombuffer(valid, np.uint8), bitorder="little")[here]
    return np.where(bits, values, values.dtype.type(missing))
