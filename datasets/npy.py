"""Arrays as .npy files, without pickles: read by their header, which is checked before memory is allocated.

Floats may be stored as float16, float32 or float64; as bfloat16, the upper two bytes of float32 (dtype V2, as ml_dtypes
writes it); or as int8 with scales: records of `scale` float32 and `values` int8, one for each item of the first axis.
"""

from __future__ import annotations

import io
import math
from functools import lru_cache
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from datasets.errors import DataError

FloatType = Literal["float32", "float16", "bfloat16", "int8"]
FLOAT_TYPES: tuple[FloatType, ...] = get_args(FloatType)
_MAX_HEADER = 1 << 12  # bytes
_BFLOAT16 = np.dtype("V2")
_SCALE, _VALUES = "scale", "values"
_LEVELS = 127  # largest int8 of a scaled item


class NpyHeader(NamedTuple):
    """What the header of a .npy file says; the bytes after it have that size."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool  # in column-major order
    start: int  # offset of the values, bytes


def read_npy_header(data: bytes | memoryview) -> NpyHeader:
    """The header of a .npy file of version 1.0. Raises `DataError` if the rest does not have the size that it says."""
    length = int.from_bytes(data[8:10], "little")
    header = _parsed(bytes(data[: 10 + min(length, _MAX_HEADER + 1)]))
    found = len(data) - header.start
    if math.prod(header.shape) * header.dtype.itemsize != found:
        raise DataError(f"the array of {header.dtype} of shape {header.shape} has {found} bytes")
    return header


@lru_cache(256)  # the arrays of a set have few shapes, and parsing takes longer than reading a vector
def _parsed(start: bytes) -> NpyHeader:
    """The header in the first bytes of a file."""
    stream = io.BytesIO(start)
    try:
        version = np.lib.format.read_magic(stream)
        if version != (1, 0):
            raise DataError(f"the array has .npy version {version}, expected 1.0")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream, max_header_size=_MAX_HEADER)
    except DataError:
        raise
    except Exception as error:  # NumPy raises all kinds of exceptions on crafted headers
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise DataError(f"not a .npy file ({reason})") from error
    if dtype.hasobject:
        raise DataError(f"the array is object of shape {shape}, which would have to be unpickled")
    if any(type(length) is not int or length < 0 for length in shape):
        raise DataError(f"the array has shape {shape}; lengths are integers of at least 0")
    return NpyHeader(shape, dtype, fortran, stream.tell())


def decode_npy(data: bytes | memoryview, header: NpyHeader) -> NDArray[Any]:
    """The array of a file whose header was read: a view of `data`, read-only."""
    values = np.frombuffer(data, header.dtype, math.prod(header.shape), header.start)
    return values.reshape(header.shape, order="F" if header.fortran else "C")


def encode_npy(array: NDArray[Any]) -> bytes:
    """An array as a .npy file. Raises ValueError for one of objects."""
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.asarray(array, order="C"), version=(1, 0), allow_pickle=False)
    return stream.getvalue()


def floats_shape(header: NpyHeader) -> tuple[int, ...] | None:
    """The shape of the floats in a file; None if it has none."""
    fields = header.dtype.fields
    if fields is not None:
        if header.dtype.names != (_SCALE, _VALUES) or fields[_SCALE][0] != np.float32:
            return None
        values = fields[_VALUES][0]
        return (*header.shape, *values.shape) if values.base == np.int8 else None
    is_float = header.dtype.kind == "f" and header.dtype.itemsize <= 8
    return header.shape if is_float or header.dtype in (_BFLOAT16, np.dtype(np.int8)) else None


def decode_floats(data: bytes | memoryview, header: NpyHeader) -> NDArray[np.float32]:
    """The floats of a file whose `floats_shape` is not None."""
    array = decode_npy(data, header)
    if array.dtype == _BFLOAT16:
        return (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    if array.dtype.fields is not None:
        values, scale = array[_VALUES], array[_SCALE]
        scaled: NDArray[np.float32] = values * scale.reshape(scale.shape + (1,) * (values.ndim - scale.ndim))
        return scaled
    with np.errstate(over="ignore"):  # the caller refuses infinities
        return array.astype(np.float32)


def as_stored(array: NDArray[Any], kind: FloatType) -> NDArray[Any]:
    """Floats as they are stored; an array of integers or bools as it is. Raises ValueError for floats out of range.

    bfloat16 and float16 are rounded to the nearest. int8 has a scale, max |x| / 127, for each item of the first axis; a
    vector has one for all.
    """
    if array.dtype.kind in "iub":
        return array
    if array.dtype.kind != "f":
        raise ValueError(f"{array.dtype} is not a type of numbers")
    with np.errstate(over="ignore"):
        values = array.astype(np.float32)
        half = values.astype(np.float16 if kind == "float16" else np.float32)
    if not np.isfinite(values).all():
        raise ValueError("not all of its numbers are finite in float32")
    if not np.isfinite(half).all():
        raise ValueError(f"{np.abs(values).max():g} is too large for float16, whose largest number is 65504")
    if kind == "bfloat16":
        return _bfloat16(values)
    return _quantised(values) if kind == "int8" else half


def _bfloat16(values: NDArray[np.float32]) -> NDArray[Any]:
    """Rounded to the nearest, ties to even, as in hardware."""
    bits = values.view(np.uint32)
    upper = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    largest = np.uint16(0x7F7F)  # not to infinity
    bounded = np.where((upper & 0x7FFF) > largest, (upper & 0x8000) | largest, upper)
    return bounded.astype("<u2").view(_BFLOAT16)


def _quantised(values: NDArray[np.float32]) -> NDArray[Any]:
    outer = values.shape[:1] if values.ndim > 1 else ()
    inner = values.shape[len(outer) :]
    scale = np.abs(values).max(axis=tuple(range(len(outer), values.ndim)), initial=0, keepdims=True) / _LEVELS
    records = np.zeros(outer, np.dtype([(_SCALE, "<f4"), (_VALUES, "i1", inner)]))
    records[_SCALE] = scale.reshape(outer)
    records[_VALUES] = np.rint(values / np.where(scale > 0, scale, np.float32(1)))
    return records
