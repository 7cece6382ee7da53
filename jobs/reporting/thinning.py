"""Long curves in a bounded number of parts, without losing an extreme."""

from __future__ import annotations

import math
from typing import NamedTuple

PARTS = 240  # of a curve
Point = tuple[float, float]
"""x, and y, which is NaN where the value is not finite."""


class Part(NamedTuple):
    """Neighbouring points of a curve: their mean and range of y. All NaN where none is finite."""

    x: float
    y: float
    low: float
    high: float


def thinned(curve: list[Point], parts: int = PARTS) -> list[Part]:
    """The points of a curve (ascending x); of more than 2 x `parts` the mean and range in equal parts of the x axis.

    x of a part is the mean of its points, but the last part ends where the curve does.
    """
    if len(curve) <= 2 * parts:
        return [Part(x, y, y, y) for x, y in curve]
    first, last = curve[0][0], curve[-1][0]
    width = (last - first) / parts or 1.0
    members: dict[int, list[Point]] = {}
    for point in curve:
        members.setdefault(min(int((point[0] - first) / width), parts - 1), []).append(point)
    found = [_part(points) for points in members.values()]
    return [*found[:-1], found[-1]._replace(x=last)]


def _part(points: list[Point]) -> Part:
    x = math.fsum(x for x, _ in points) / len(points)
    values = [y for _, y in points if not math.isnan(y)]
    if not values:
        return Part(x, math.nan, math.nan, math.nan)
    return Part(x, math.fsum(values) / len(values), min(values), max(values))
