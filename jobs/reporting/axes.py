"""Axes of charts: their range and round ticks, and a closer range where a few values would flatten all others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from jobs.reporting.numerals import plain

OUTLYING = 0.1  # share of the values at either end that may lie outside a closer axis
STRETCH = 2.5  # there is one if the whole axis would be this many times as long
FEWEST = 20  # values of a chart with a closer axis
DECADES = 30.0  # highest / lowest value from which on an axis may be logarithmic


class Axis(NamedTuple):
    """A range of values on a range of the drawing."""

    low: float
    high: float
    start: float  # where `low` is drawn
    stop: float
    log: bool = False

    def at(self, value: float) -> float:
        """Where a value is drawn."""
        low, high, value = (math.log10(x) if self.log else x for x in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.stop - self.start)

    def ticks(self) -> list[float]:
        """About five round numbers in the range."""
        if not self.log:
            return round_numbers(self.low, self.high, 5)
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        factors = (1, 2, 5) if self.high / self.low < 200 else (1,)
        found = [factor * 10.0**decade for decade in decades for factor in factors]
        found = [value for value in found if self.low <= value <= self.high]
        return found[:: max(1, len(found) // 6)]


def is_wide(low: float, high: float) -> bool:
    """Whether a logarithmic axis shows such a range better."""
    return low > 0 and high > DECADES * low


def whole_axis(low: float, high: float, start: float, stop: float, from_zero: bool, log: bool) -> Axis:
    """An axis that has room for all values from `low` to `high`, and zero if `from_zero`."""
    if log:
        return Axis(low / 1.2, high * 1.2, start, stop, log=True)
    low = min(low, 0.0) if from_zero else low
    room = 0.06 * (high - low) or abs(high) * 0.05 or 1.0
    return Axis(low if from_zero and low == 0 else low - room, high + room, start, stop)


def closer_axis(values: Sequence[float], ends: Sequence[float], whole: Axis) -> tuple[Axis, str] | None:
    """An axis without outlying values, and a line that names them; None where all values fit well on one axis.

    `ends`, the last values of the curves, are always inside.
    """
    if len(values) < FEWEST:
        return None
    ordered = sorted(values)
    skipped = round(OUTLYING * (len(ordered) - 1))
    low, high = min(ordered[skipped], *ends), max(ordered[-1 - skipped], *ends)
    room = 0.1 * (high - low)
    if room == 0 or ordered[-1] - ordered[0] < STRETCH * (high - low):
        return None
    low, high = max(low - room, ordered[0] - room / 2), min(high + room, ordered[-1] + room / 2)
    outside = [f"highest {plain(ordered[-1])}"] if ordered[-1] > high else []
    outside += [f"lowest {plain(ordered[0])}"] if ordered[0] < low else []
    return Axis(low, high, whole.start, whole.stop), f"Outside the axis: {', '.join(outside)}."


def round_numbers(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers in [low, high], equally far apart."""
    step = (high - low) / count
    power = 10.0 ** math.floor(math.log10(step))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= 0.999 * step)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]
