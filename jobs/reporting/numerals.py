"""Numbers as short texts."""

from __future__ import annotations

import re


def tick(value: float) -> str:
    """A number as a tick label: 20k, 1.5M, 0.001."""
    for size, letter, unit in ((1e9, "G", 1e9), (1e6, "M", 1e6), (1e4, "k", 1e3)):
        if abs(value) >= size:
            return f"{value / unit:.4g}{letter}"
    return re.sub(r"e([+-])0*", r"e\1", f"{value:.4g}").replace("e+", "e")


def plain(value: float) -> str:
    """A figure with four significant digits, or all digits before the point."""
    if abs(value) >= 999.5 or value == round(value):
        return f"{value:,.0f}"
    return f"{value:#.4g}" if abs(value) >= 0.01 else tick(value)


def duration(seconds: float) -> str:
    """45 s, 12 min, 3.5 h or 2.1 d."""
    for size, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"
