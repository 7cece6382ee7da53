"""Numbers of bytes as people write them."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator, Field

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def parse_bytes(value: object) -> object:
    """A number of bytes from an integer or a string such as "512MiB" or "2 GB"."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmgt]i?)?b?\s*", value.lower())
    if not match:
        raise ValueError(f"{value!r} is not a number of bytes such as 512MiB or 2GB")
    return int(float(match[1]) * _UNITS[match[2] or ""])


def format_bytes(size: float) -> str:
    """A number of bytes for a person: 512 bytes, 1.5 MiB, 300 GiB."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size:.0f} {unit}" if size >= 100 or unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError


Bytes = Annotated[int, Field(ge=0), BeforeValidator(parse_bytes, json_schema_input_type=int | str)]
"""A field that holds a number of bytes."""
