"""A last-in, first-out coder: range asymmetric numeral systems (Duda 2013, arXiv 1311.2540), many lanes at once.

Every image of a batch has `width` lanes, each a head of 64 bits; all share one stack of 16-bit words (interleaving,
Giesen 2014, arXiv 1402.3392). A push is undone exactly by the pop of the same distribution and the other way round, so
symbols may be popped that were never pushed (bits back, Hinton and van Camp 1993; Townsend et al. 2019, arXiv
1901.04866): the words for these are drawn from a fixed sequence, counted as initial bits, and are on the stack again
when all is undone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trainer.ans.cumulative import PRECISION, TOTAL, Cumulative, Integers, Interval

WORD = 16  # bits
LOWEST = np.uint64(1 << (64 - WORD))  # heads stay in [LOWEST, 2^64)

_P, _W = np.uint64(PRECISION), np.uint64(WORD)
_SLOT, _LOW = np.uint64(TOTAL - 1), np.uint64((1 << WORD) - 1)
_GOLDEN = 0x9E3779B1  # 2^32 / golden ratio
_SPREAD, _GATHER = np.uint64(pow(_GOLDEN, -1, TOTAL)), np.uint64(_GOLDEN)

Words = NDArray[np.uint16]
Heads = NDArray[np.uint64]


class ExhaustedError(Exception):
    """A decoder's stack has ended: its words are not an encoder's."""


class Stack:
    """Heads [lanes, width] and the words below them. Only the first `rows` lanes are coded; that may change between
    batches.
    """

    def __init__(self, lanes: int, width: int):
        self.lanes, self.width, self.rows = lanes, width, lanes
        self.heads = _first_heads(lanes, width)
        self.drawn: int | None = 0  # words from the fixed sequence; None: a decoder's, which draws none
        self._words, self._depth = np.empty(1 << 12, np.uint16), 0

    @classmethod
    def restore(cls, heads: Heads, words: Words) -> Stack:
        """A decoder's stack, from `heads` [lanes, width] and `words` of an encoder's."""
        stack = cls(*heads.shape)
        stack.heads, stack._words, stack._depth, stack.drawn = heads.copy(), words.copy(), len(words), None
        return stack

    @property
    def words(self) -> Words:
        """The words, the top last."""
        return self._words[: self._depth].copy()

    @property
    def initial_bits(self) -> int:
        """Bits that this encoder began with: of the heads, and of the words drawn since."""
        return self.heads.size * (64 - WORD) + WORD * (self.drawn or 0)

    def is_initial(self) -> bool:
        """Whether a decoder's stack is the one that its encoder began with."""
        there = _sequence(0, self._depth)[::-1]
        return bool((self.heads == _first_heads(self.lanes, self.width)).all() and (self.words == there).all())

    def push(self, distribution: Cumulative, symbols: Integers) -> None:
        """Add symbols [lanes, n]; those of lanes that are not coded are ignored."""
        distribution = distribution[: self.rows, :]
        start, size = distribution.interval(symbols[: self.rows])
        n = symbols.shape[1]
        if size.min(initial=1) <= 0:
            raise ValueError("a symbol without a slot was pushed")
        stride = self._stride(n)
        for first in reversed(range(stride)):
            interval = Interval(start[:, first::stride], size[:, first::stride])
            self._push(self._column(first, n), interval, distribution.spread)

    def pop(self, distribution: Cumulative) -> Integers:
        """Take symbols [lanes, n] off; 0 in lanes that are not coded."""
        n = distribution.shape[1]
        distribution = distribution[: self.rows, :]
        symbols, stride = np.zeros((self.lanes, n), np.int64), self._stride(n)
        for first in range(stride):
            heads = self._column(first, n)
            slot = heads & _SLOT
            u = (slot * _GATHER & _SLOT if distribution.spread else slot).astype(np.int64)
            symbols[: self.rows, first::stride], interval = distribution[:, first::stride].find(u)
            self._pop(heads, u, interval)
        return symbols

    def _stride(self, n: int) -> int:
        """Symbols of an image that one lane takes: lane i has the i-th run of them."""
        return -(-n // self.width)

    def _column(self, first: int, n: int) -> Heads:
        """The heads of the symbols first, first + stride, ...; a view."""
        return self.heads[: self.rows, : len(range(first, n, self._stride(n)))]

    def _push(self, heads: Heads, interval: Interval, spread: bool) -> None:
        start, size = (part.astype(np.uint64) for part in interval)
        for _ in range(2):  # a symbol of one slot has 32 bits, two words
            full = (heads >> _P) >= size
            if not full.any():
                break
            self._put((heads[full] & _LOW).astype(np.uint16))
            heads[full] >>= _W
        quotient = heads // size
        slot = heads - quotient * size + start
        heads[...] = (quotient << _P) + (slot * _SPREAD & _SLOT if spread else slot)

    def _pop(self, heads: Heads, u: Integers, interval: Interval) -> None:
        start, size = interval
        heads[...] = size.astype(np.uint64) * (heads >> _P) + (u - start).astype(np.uint64)
        for limit in (LOWEST >> _W, LOWEST):  # in the order opposite to that of _push
            low = heads < limit
            if low.any():
                heads[low] = (heads[low] << _W) | self._take(int(low.sum()))

    def _put(self, words: Words) -> None:
        end = self._depth + len(words)
        if end > len(self._words):
            self._words = np.concatenate([self._words, np.empty(max(end, len(self._words)), np.uint16)])
        self._words[self._depth : end] = words
        self._depth = end

    def _take(self, count: int) -> Words:
        """The upper `count` words, the top last."""
        missing = max(0, count - self._depth)
        self._depth -= count - missing
        found = self._words[self._depth : self._depth + count - missing]
        if not missing:
            return found
        if self.drawn is None:
            raise ExhaustedError
        self.drawn += missing
        return np.concatenate([_sequence(self.drawn - missing, missing)[::-1], found])


def _first_heads(lanes: int, width: int) -> Heads:
    """The heads that an encoder begins with: 48 bits of the fixed sequence each."""
    return (LOWEST + (_mixed(1 << 60, lanes * width) >> np.uint64(16))).reshape(lanes, width)


def _sequence(first: int, count: int) -> Words:
    """`count` words of the fixed sequence."""
    return (_mixed(first, count) >> np.uint64(48)).astype(np.uint16)


def _mixed(first: int, count: int) -> Heads:
    """Pseudo-random 64-bit words (SplitMix64, Steele et al. 2014)."""
    x = np.arange(first + 1, first + 1 + count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
