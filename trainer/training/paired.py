"""Two bounds of the same images by the same noise: their difference, image by image."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from trainer.elbo import bits_per_dimension

EXTREMES = 10  # images named at either end


class ImageDifference(NamedTuple):
    """The bounds of one image, nats."""

    position: int  # in the set
    nats: float  # `other` - `own`
    own: float
    other: float


class PairedDifference(NamedTuple):
    """The mean of (other - own) over the images that both have: positive where `own` is the better model."""

    images: int
    own: float  # mean, nats
    other: float
    nats: float  # other - own
    standard_error: float  # of `nats`, from the differences of the images
    unpaired_error: float  # the standard error if the two had been evaluated on different images
    best: tuple[ImageDifference, ...]  # largest differences first: own gains most
    worst: tuple[ImageDifference, ...]  # smallest first: own loses most

    def row(self, dimensions: int | None) -> dict[str, float]:
        """The figures by their names in a report: nats, and bits per dimension (None: of a density, which has none)."""
        figures = {
            "own": self.own,
            "other": self.other,
            "difference": self.nats,
            "standard_error": self.standard_error,
            "unpaired_error": self.unpaired_error,
        }
        row = {f"paired/{name}": value for name, value in figures.items()}
        if dimensions is not None:
            bits = {name: bits_per_dimension(value, dimensions) for name, value in figures.items()}
            row |= {f"paired/bpd/{name}": value for name, value in bits.items()}
        return row


def paired_difference(own: Tensor, other: Tensor) -> PairedDifference:
    """From bounds float64 [M] by position, NaN for images that were not evaluated (`bounds_of_images`)."""
    both = (~own.isnan() & ~other.isnan()).nonzero()[:, 0]
    a, b = own[both], other[both]
    difference, count = b - a, len(both)
    order = difference.argsort(descending=True, stable=True)

    def named(rows: Tensor) -> tuple[ImageDifference, ...]:
        columns = (both[rows], difference[rows], a[rows], b[rows])
        return tuple(ImageDifference(int(p), *nats) for p, *nats in zip(*(c.tolist() for c in columns), strict=True))

    return PairedDifference(
        images=count,
        own=a.mean().item(),
        other=b.mean().item(),
        nats=difference.mean().item(),
        standard_error=standard_error(difference),
        unpaired_error=math.hypot(standard_error(a), standard_error(b)),
        best=named(order[:EXTREMES]),
        worst=named(order.flip(0)[:EXTREMES]),
    )


def standard_error(values: Tensor) -> float:
    """Of the mean of independent values [n]; NaN for fewer than two."""
    return (values.std() / math.sqrt(len(values))).item() if len(values) > 1 else math.nan
