"""JSON from files that anyone may have written."""

from __future__ import annotations

import json
from typing import Any

MOST_JSON_BYTES = 16 << 20  # of a file that describes something; objects in memory are up to thirty times as large


def parse_json(data: bytes | str) -> Any:
    """The value of a JSON text. Raises ValueError, also for nesting that is too deep."""
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("nested too deep") from None
