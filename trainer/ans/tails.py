"""Tail probabilities t(x) = P(X > x), x >= 0, of symmetric distributions, with the same bits on every machine.

Between nodes a cubic is evaluated with additions and multiplications only, which IEEE 754 rounds alike in any loop; the
nodes are computed with Python's `decimal`. An exponential of a mathematical library promises neither.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from decimal import Decimal, localcontext

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_PER_UNIT = 64  # nodes
_DIGITS = 40
_PI = Decimal("3.14159265358979323846264338327950288419717")


class Tail:
    """t(x) by piecewise cubics; 0 from `reach` on, where t is below a slot of any distribution here (2^-33)."""

    def __init__(self, reach: int, nodes: Callable[[], tuple[list[Decimal], list[Decimal]]]):
        self._reach, self._nodes = reach, nodes

    @functools.cached_property
    def _cubics(self) -> tuple[Floats, Floats, Floats, Floats]:
        """Coefficients of each cell in its own coordinate from 0 to 1 (cubic Hermite interpolation)."""
        values, slopes = (np.array([float(x) for x in column]) for column in self._nodes())
        slopes = slopes / _PER_UNIT
        low, high, first, last = values[:-1], values[1:], slopes[:-1], slopes[1:]
        cubics = low, first, 3 * (high - low) - 2 * first - last, 2 * (low - high) + first + last
        end = np.zeros(1)  # the cell of everything from `reach` on
        a, b, c, d = (np.concatenate([part, end]) for part in cubics)
        return a, b, c, d

    def __call__(self, x: Floats) -> Floats:
        """P(X > x) for x >= 0, of the shape of x."""
        a, b, c, d = self._cubics
        place = np.minimum(x * _PER_UNIT, float(self._reach * _PER_UNIT))
        cell = place.astype(np.int64)
        u = place - cell
        found: Floats = a[cell] + u * (b[cell] + u * (c[cell] + u * d[cell]))
        return found


def _logistic_nodes(reach: int) -> tuple[list[Decimal], list[Decimal]]:
    """P(X > x) = 1 / (1 + e^x) and its derivative at the nodes."""
    values, slopes = [], []
    with localcontext() as context:
        context.prec = _DIGITS
        for i in range(reach * _PER_UNIT + 1):
            p = 1 / (1 + (Decimal(i) / _PER_UNIT).exp())
            values.append(p)
            slopes.append(-p * (1 - p))
    return values, slopes


def _normal_nodes(reach: int) -> tuple[list[Decimal], list[Decimal]]:
    """P(X > x) of N(0, 1) and its derivative -phi(x) at the nodes; Phi by its Taylor series about 0."""
    values, slopes = [], []
    with localcontext() as context:
        context.prec = _DIGITS
        scale = 1 / (2 * _PI).sqrt()
        for i in range(reach * _PER_UNIT + 1):
            x = Decimal(i) / _PER_UNIT
            total, term, n = x, x, 0
            while abs(term) > Decimal(10) ** -(_DIGITS - 5):
                n += 1
                term = -term * x * x / (2 * n)
                total += term / (2 * n + 1)
                if not term:
                    break
            values.append(Decimal("0.5") - scale * total)
            slopes.append(-scale * (-x * x / 2).exp())
    return values, slopes


NORMAL = Tail(7, lambda: _normal_nodes(7))
LOGISTIC = Tail(24, lambda: _logistic_nodes(24))
