"""Cumulative distributions in integers: symbols 0 .. K - 1 share the 2^32 slots of an ANS coder.

F(0) = 0 and F(K) = 2^32, and symbol k has the slots [F(k), F(k + 1)). F is a function of k that can be computed
anywhere, so an encoder evaluates it in two places and a decoder searches it; there are no tables of K entries for each
symbol. Distributions that symbols are pushed by give every symbol a slot. Those that latents are popped by may have
empty symbols: what has never been popped is never pushed back.
"""

from __future__ import annotations

from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.ans.tails import LOGISTIC, NORMAL, Floats, Tail
from trainer.errors import TrainingError

PRECISION = 32  # bits
TOTAL = 1 << PRECISION

Integers = NDArray[np.int64]

_GALLOPS = 4  # steps of doubling length from a first guess, before the search halves


def parameters(values: Tensor) -> Floats:
    """A network's numbers [B, ...] as float64 [B, n]. Raises TrainingError if one is not finite."""
    found: Floats = values.detach().double().cpu().flatten(1).numpy()
    if not np.isfinite(found).all():
        raise TrainingError("the model's output is not finite: it assigns no probabilities to these images")
    return found


class Interval(NamedTuple):
    """Slots [start, start + size) of symbols."""

    start: Integers
    size: Integers


class Cumulative:
    """Distributions of symbols [B, n], independent of each other."""

    size: int  # K
    spread = False
    """Whether a symbol's slots are spread over all instead of adjacent.

    The pop after a push sees the slots of what was pushed. Were those of both adjacent, latents that are popped after
    pixels would depend on these, where the model predicts them badly: no draws from their posterior.
    """

    @property
    def shape(self) -> tuple[int, int]:
        """(B, n)"""
        raise NotImplementedError

    def __getitem__(self, where: tuple[slice, slice]) -> Self:
        """The distributions of some of the rows and columns."""
        raise NotImplementedError

    def at(self, k: Integers) -> Integers:
        """F(k), k from 0 to K [..., B, n]."""
        raise NotImplementedError

    def guess(self, u: Integers) -> Integers:
        """A symbol near the one that has slot u [B, n], where the search begins; any symbol is right."""
        return np.full(u.shape, self.size // 2, np.int64)

    def interval(self, symbols: Integers) -> Interval:
        """The slots of symbols [B, n]."""
        start, end = self.at(np.stack([symbols, symbols + 1]))
        return Interval(start, end - start)

    def find(self, u: Integers) -> tuple[Integers, Interval]:
        """The symbols that have slots u [B, n], and all their slots."""
        low, high = np.zeros(u.shape, np.int64), np.full(u.shape, self.size, np.int64)  # F(low) <= u < F(high)
        k, gallop = np.clip(self.guess(u), 0, self.size - 1), 0
        while True:
            start, end = self.at(np.stack([k, k + 1]))
            above, below = u < start, u >= end
            if not (above | below).any():
                return k, Interval(start, end - start)
            high, low = np.where(above, k, high), np.where(below, k + 1, low)
            if gallop < _GALLOPS:
                step = 1 << gallop
                moved = np.where(above, k - step, np.where(below, k + step, k))
                k = np.minimum(np.maximum(moved, low), high - 1)
                gallop += 1
            else:
                k = np.where(above | below, (low + high) // 2, k)


class Cells(Cumulative):
    """The mass that location-scale distributions put into K cells of one width around 0, the outer two open.

    Cell k is [(k - K/2) width, (k + 1 - K/2) width).
    """

    def __init__(self, tail: Tail, mean: Floats, inverse_scale: Floats, width: float, size: int, floor: int = 1):
        """`mean` and `inverse_scale` [B, n] float64; `floor`: slots that every symbol has; 0 for what is
        popped first, whose slots are spread."""
        self.tail, self.mean, self.inverse_scale = tail, mean, inverse_scale
        self.width, self.size, self.floor, self.spread = width, size, floor, not floor

    @property
    def shape(self) -> tuple[int, int]:
        return self.mean.shape

    def __getitem__(self, where: tuple[slice, slice]) -> Cells:
        parts = self.mean[where], self.inverse_scale[where]
        return Cells(self.tail, *parts, self.width, self.size, self.floor)

    def at(self, k: Integers) -> Integers:
        shared = TOTAL - self.floor * self.size
        x = ((k - self.size / 2) * self.width - self.mean) * self.inverse_scale
        # from the nearer end: tails are exact to the last bit of a float relative to themselves
        outside = np.floor(self.tail(np.abs(x)) * shared).astype(np.int64)
        slots = np.where(x < 0, outside, shared - outside)
        slots = np.where(k <= 0, 0, np.where(k >= self.size, shared, slots))
        found: Integers = slots + self.floor * k
        return found

    def guess(self, u: Integers) -> Integers:
        share = torch.from_numpy((u + 0.5) / TOTAL)
        quantile = torch.special.ndtri(share) if self.tail is NORMAL else torch.logit(share)
        place = (self.mean + quantile.numpy() / self.inverse_scale) / self.width + self.size / 2
        found: Integers = np.clip(place, 0, self.size - 1).astype(np.int64)
        return found


class MixtureCells(Cumulative):
    """The mass that mixtures of M logistic distributions put into K cells around 0, as `Cells` has them.

    Every symbol has two slots before the others are shared: a sum of M rounded terms may fall by one where it should
    stay.
    """

    def __init__(self, weights: Floats, means: Floats, inverse_scales: Floats, width: float, size: int):
        """All [M, B, n] float64; the weights of a symbol sum to one."""
        self.weights, self.means, self.inverse_scales = weights, means, inverse_scales
        self.width, self.size = width, size

    @property
    def shape(self) -> tuple[int, int]:
        return self.means.shape[1:]

    def __getitem__(self, where: tuple[slice, slice]) -> MixtureCells:
        place = (slice(None), *where)
        parts = self.weights[place], self.means[place], self.inverse_scales[place]
        return MixtureCells(*parts, self.width, self.size)

    def at(self, k: Integers) -> Integers:
        shared = TOTAL - 2 * self.size
        edge = (k - self.size / 2) * self.width
        total = np.zeros(k.shape)
        for weight, mean, inverse in zip(self.weights, self.means, self.inverse_scales, strict=True):  # in this order
            x = (edge - mean) * inverse
            outside = LOGISTIC(np.abs(x))
            total = total + weight * np.where(x < 0, outside, 1 - outside)
        slots = np.floor(np.minimum(total, 1.0) * shared).astype(np.int64)
        slots = np.where(k <= 0, 0, np.where(k >= self.size, shared, slots))
        found: Integers = slots + 2 * k
        return found


class Table(Cumulative):
    """Distributions given by the probability of every symbol."""

    def __init__(self, slots: Integers):
        """`slots`: F(0) .. F(K), [B, n, K + 1]."""
        self.slots, self.size = slots, slots.shape[-1] - 1

    @classmethod
    def of(cls, probabilities: Floats) -> Table:
        """For probabilities [B, n, K], which sum to one up to rounding."""
        size = probabilities.shape[-1]
        total = np.minimum(np.cumsum(probabilities, -1), 1.0)  # of terms >= 0: rising, however it is rounded
        slots = np.floor(total * (TOTAL - size)).astype(np.int64)
        slots[..., -1] = TOTAL - size
        first = np.zeros((*slots.shape[:-1], 1), np.int64)
        return cls(np.concatenate([first, slots], -1) + np.arange(size + 1))

    @property
    def shape(self) -> tuple[int, int]:
        return self.slots.shape[:2]

    def __getitem__(self, where: tuple[slice, slice]) -> Table:
        return Table(self.slots[where])

    def at(self, k: Integers) -> Integers:
        rows, columns = np.ogrid[: self.slots.shape[0], : self.slots.shape[1]]
        found: Integers = self.slots[rows, columns, k]
        return found

    def guess(self, u: Integers) -> Integers:
        found: Integers = (self.slots[..., 1:] <= u[..., None]).sum(-1)
        return found


def bernoulli(logit: Floats) -> Cells:
    """p(1) = sigmoid(logit) [B, n]: the mass of a logistic distribution around `logit` above 0."""
    return Cells(LOGISTIC, logit, np.ones_like(logit), 1.0, 2)
