"""The file that images are compressed to.

    "LBZ1"                          4 bytes
    length of the header            uint32, little endian
    header                          JSON, deflated with a dictionary of its usual words
    conditions                      their arrays, deflated
    heads, words                    of the ANS stack, little endian
    CRC-32 of all before it         uint32, little endian

The header has the sizes of all parts, so a truncated or extended file is known before anything is decoded; and the
CRC-32 of the pixels, so that what was decoded is returned only if it is what was encoded.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pydantic import ConfigDict, NonNegativeInt, PositiveInt, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked
from torch import Tensor

from jobs.errors import ConfigError
from trainer.ans.stack import Stack
from trainer.condition_values import Condition, Tokens, columns_of

_MAGIC, _VERSION = b"LBZ1", 1
_MOST_HEADER = 1 << 20  # bytes
_MOST_CONDITIONS = 1 << 34  # bytes, inflated
_USUAL = (  # words of headers, for the deflation of new ones
    b'{"model":"","weights":"ema","spec":[1,28,28,256],"count":10000,"lanes":32,"width":16,"steps":null,"words":'
    b'"conditions":[["label",[["|u1",[10000]]]]],"condition_bytes":0,"crc":"environment":{"device":"AMD EPYC, AVX512, '
    b'Intel(R) Xeon(R), AVX2, NVIDIA H100, CUDA 13.0","threads":"1","precision":"float32","torch":"2.13.0+cpu",'
    b'"numpy":"2.4.6"}}'
)
_KINDS = {"|u1", "<u2", "<i4", "<i8", "<f4"}  # of arrays of conditions


@checked(frozen=True, config=ConfigDict(extra="forbid"))
class Header:
    """What a file says of itself."""

    model: str  # checksum of its weights
    weights: str  # which of the run's
    spec: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt]  # channels, height, width, levels
    count: PositiveInt
    lanes: PositiveInt
    width: PositiveInt
    words: NonNegativeInt
    steps: PositiveInt | None  # T of a diffusion
    conditions: list[tuple[str, list[tuple[str, list[int]]]]]  # name, and the type and shape of its arrays
    condition_bytes: NonNegativeInt  # deflated
    crc: NonNegativeInt  # of the pixels, image by image
    environment: dict[str, str]


@dataclass(frozen=True)
class Container:
    """A file's content."""

    header: Header
    conditions: bytes  # deflated
    stack: Stack

    def to_bytes(self) -> bytes:
        """The file."""
        fields = TypeAdapter(Header).dump_python(self.header)
        deflate = zlib.compressobj(9, zdict=_USUAL)
        header = deflate.compress(json.dumps(fields, separators=(",", ":")).encode()) + deflate.flush()
        stack = self.stack.heads.astype("<u8").tobytes() + self.stack.words.astype("<u2").tobytes()
        body = _MAGIC + struct.pack("<I", len(header)) + header + self.conditions + stack
        return body + struct.pack("<I", zlib.crc32(body))

    @property
    def condition(self) -> Condition:
        """The conditions of all images, on the CPU. Raises ValueError if they are not what the header says."""
        return _unpacked(self.header, self.conditions)


def parse(data: bytes, name: str) -> Container:
    """The content of a file called `name`. Raises ConfigError in one line if it is damaged or no such file."""
    if data[:4] != _MAGIC:
        raise ConfigError(
            f"{name}: not a file of jobs.compress" + (" of this version" if data[:3] == _MAGIC[:3] else "")
        )
    if len(data) < 12 or zlib.crc32(data[:-4]) != struct.unpack("<I", data[-4:])[0]:
        raise ConfigError(f"{name}: damaged: truncated, or its bytes have changed since it was written (CRC-32)")
    try:
        return _parsed(data)
    except (ValueError, struct.error, zlib.error, EOFError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"{name}: damaged, though its checksum is right: {reason}") from error


def _parsed(data: bytes) -> Container:
    (length,) = struct.unpack("<I", data[4:8])
    inflate = zlib.decompressobj(zdict=_USUAL)
    text = inflate.decompress(data[8 : 8 + length], _MOST_HEADER)
    try:
        header = TypeAdapter(Header).validate_python(json.loads(text))
    except ValidationError as error:
        wrong = error.errors()[0]
        raise ValueError(f"header: {'.'.join(map(str, wrong['loc']))}: {wrong['msg']}") from error
    heads = header.lanes * header.width
    sizes = [header.condition_bytes, 8 * heads, 2 * header.words]
    if 8 + length + sum(sizes) + 4 != len(data):
        raise ValueError(f"{len(data)} bytes, where the header says {8 + length + sum(sizes) + 4}")
    places = np.cumsum([8 + length, *sizes])
    conditions, first, words = (data[places[i] : places[i + 1]] for i in range(3))
    values = np.frombuffer(first, "<u8").astype(np.uint64).reshape(header.lanes, header.width)
    return Container(header, conditions, Stack.restore(values, np.frombuffer(words, "<u2").astype(np.uint16)))


def pixels_crc(images: Tensor) -> int:
    """CRC-32 of images uint8 [N, C, H, W]."""
    return zlib.crc32(images.contiguous().numpy().data)


def packed(condition: Condition) -> tuple[list[tuple[str, list[tuple[str, list[int]]]]], bytes]:
    """Conditions [N, ...] as the header describes them, and deflated."""
    described, parts = [], []
    for name, value in (condition or {}).items():
        arrays = [_smallest(column.cpu().numpy()) for column in columns_of(value)]
        described.append((name, [(array.dtype.str, list(array.shape)) for array in arrays]))
        parts += [array.tobytes() for array in arrays]
    return described, zlib.compress(b"".join(parts), 9) if parts else b""


def _smallest(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Integers in the smallest type that has them all."""
    if array.dtype.kind == "f":
        return array.astype("<f4")
    low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
    for kind in ("|u1", "<u2", "<i4"):
        limits = np.iinfo(np.dtype(kind))
        if limits.min <= low and high <= limits.max:
            return array.astype(kind)
    return array.astype("<i8")


def _unpacked(header: Header, data: bytes) -> Condition:
    if not header.conditions:
        return None
    sizes = [np.dtype(kind).itemsize * math.prod(shape) for _, arrays in header.conditions for kind, shape in arrays]
    if any(kind not in _KINDS or len(data) == 0 for _, arrays in header.conditions for kind, _ in arrays):
        raise ValueError("conditions: unknown types")
    if min(sizes) < 0 or sum(sizes) > _MOST_CONDITIONS:
        raise ValueError("conditions: impossible sizes")
    whole = zlib.decompressobj().decompress(data, sum(sizes) + 1)
    if len(whole) != sum(sizes):
        raise ValueError("conditions: of another length than the header says")
    found: dict[str, Tensor | Tokens] = {}
    place = 0
    for name, arrays in header.conditions:
        columns = []
        for kind, shape in arrays:
            if shape[:1] != [header.count]:
                raise ValueError(f"conditions: {name} has {shape[:1]} rows, not {header.count}")
            size = math.prod(shape)
            array = np.frombuffer(whole, np.dtype(kind), size, place).reshape(shape)
            place += array.nbytes
            columns.append(torch.from_numpy(array.astype(np.float32 if kind == "<f4" else np.int64)))
        found[name] = (
            columns[0] if len(columns) == 1 else Tokens(*(c if c.is_floating_point() else c.int() for c in columns))
        )
    return found
