"""Fields of .json members by dotted names, and columns of their values."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

MOST_BYTES = 1 << 20
"""Bytes of a member that text or fields are read from; a longer one has none."""
_INT64 = 1 << 63


def split_source(source: str) -> tuple[str, tuple[str, ...]]:
    """The extension of a source and the path of a field: json.meta.title -> json, (meta, title); txt -> txt, ()."""
    head, _, rest = source.partition(".")
    if head == "json":
        return head, tuple(rest.split("."))
    return source, ()


def parse_fields(data: bytes | memoryview) -> Any:
    """The value of a .json member. Raises ValueError if it is too long, not UTF-8, or no JSON."""
    if len(data) > MOST_BYTES:
        raise ValueError("too long")
    try:
        return json.loads(str(data, "utf-8"))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def field_of(value: Any, path: Sequence[str]) -> Any:
    """The value of a field; None if there is none."""
    for name in path:
        if not isinstance(value, dict):
            return None
        value = value.get(name)
    return value


def column_of(values: Sequence[Any]) -> pa.Array:
    """JSON values as an Arrow column: bool, int64, double or string; lists, objects and mixed kinds as their JSON."""
    kinds = {type(value) for value in values if value is not None}
    if not kinds:
        return pa.nulls(len(values))
    if kinds == {bool}:
        return pa.array(values, pa.bool_())
    if kinds == {int} and all(value is None or -_INT64 <= value < _INT64 for value in values):
        return pa.array(values, pa.int64())
    if kinds <= {int, float}:
        return pa.array([None if value is None else _double(value) for value in values], pa.float64())
    return pa.array([None if value is None else _text(value) for value in values], pa.string())


def common_type(types: set[pa.DataType]) -> pa.DataType:
    """The type of a column whose shards have these types."""
    kinds = types - {pa.null()}
    if len(kinds) <= 1:
        return next(iter(kinds), pa.null())
    if all(pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in kinds):
        whole = all(pa.types.is_integer(kind) for kind in kinds)
        return pa.int64() if whole else pa.float64()
    return pa.string()


def _double(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text.encode(errors="backslashreplace").decode()  # JSON may have half of a surrogate pair
