"""Profiles of power-function averages, and the combination of snapshots that is nearest to one (Karras et al. 2024,
EDM2, arXiv 2312.02696, part 3 and appendix C).

An average of relative width w weighs the weights at image count tau by tau^gamma; w is the standard deviation of that
profile as a fraction of the images seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

WIDEST = 12**-0.5  # of the uniform average


class Snapshot(NamedTuple):
    """A stored average of relative width `width` over the weights from `start` to `images` images."""

    images: int
    width: float
    start: int = 0


def exponent(width: float) -> float:
    """gamma of the profile tau^gamma of relative width `width`, in (0, 0.289) (equations 123-126).

    The variance of that distribution over [0, 1] is (gamma + 1) / ((gamma + 2)^2 (gamma + 3)).
    """
    if not 0 < width < WIDEST:
        raise ValueError(f"width: {width} is not between 0 and 0.289, the width of an average of all weights alike")
    roots = np.roots([1, 7, 16 - width**-2, 12 - width**-2])
    return float(max(root.real for root in roots if abs(root.imag) < 1e-9))


def combination(stored: Sequence[Snapshot], wanted: Snapshot) -> NDArray[np.float64]:
    """[len(stored)] factors of the snapshots in the combination nearest to the profile of `wanted` (algorithm 3).

    They are scaled to a sum of 1: an average of equal weights is those weights.
    """
    products = np.array([[_product(a, b) for b in stored] for a in stored])
    target = np.array([_product(a, wanted) for a in stored])
    nearest = np.linalg.lstsq(products, target, rcond=1e-12)[0]
    factors: NDArray[np.float64] = nearest / nearest.sum()
    return factors


def _product(a: Snapshot, b: Snapshot) -> float:
    """Integral of the product of two profiles, in 1/images (algorithm 3)."""
    if a.images > b.images:
        a, b = b, a
    gamma_a, gamma_b = exponent(a.width), exponent(b.width)
    scale = (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1)
    return float(scale * (a.images / b.images) ** gamma_b / b.images)
