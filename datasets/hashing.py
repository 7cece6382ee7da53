"""A keyed 64-bit hash and a keyed permutation of 0..n-1, in numpy.

Library generators change between versions; the order of a run's data must not. The hash is the finaliser of splitmix64
(Steele, Lea and Flood 2014) used as a counter-based function.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: spreads consecutive counters
_MASK = (1 << 64) - 1
_ROUNDS = 6

Key = NDArray[np.uint64]


def mix(values: Key) -> Key:
    """Every bit of the result depends on every bit of the value: uint64 of any shape; products wrap."""
    values = values ^ (values >> np.uint64(30))
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


def derive(key: Key, counter: NDArray[Any] | int) -> Key:
    """A new key from a key and a counter (integers of any sign and size; arrays broadcast)."""
    if isinstance(counter, int):
        counter = np.array([counter & _MASK], dtype=np.uint64)
    return mix(key + mix(counter.astype(np.uint64) * np.uint64(_GOLDEN) + np.uint64(_GOLDEN)))


def key_of(seed: int, purpose: str) -> Key:
    """The key, uint64 [1], for a purpose under a seed."""
    key = np.zeros(1, dtype=np.uint64)
    for counter in (seed, *purpose.encode()):
        key = derive(key, counter)
    return key


def permute(x: NDArray[np.int64], n: NDArray[np.int64], key: Key) -> NDArray[np.int64]:
    """Where a keyed permutation of 0..n-1 sends x: int64 [N]; x, n (above x) and key broadcast to [N].

    A Feistel network over the a x b grid with a = ceil(sqrt n) and b = ceil(n / a), so that few cells are outside
    0..n-1, and cycle walking (Black and Rogaway 2002, "Ciphers with arbitrary finite domains") back into the range.
    O(1) in memory and time per x.
    """
    x, n, key = np.broadcast_arrays(x, n, key)
    place = _feistel(x, n, key)
    outside = np.flatnonzero(place >= n)
    while outside.size:
        place[outside] = _feistel(place[outside], n[outside], key[outside])
        outside = outside[place[outside] >= n[outside]]
    return place


def _feistel(x: NDArray[np.int64], n: NDArray[np.int64], key: Key) -> NDArray[np.int64]:
    a = np.ceil(np.sqrt(n)).astype(np.int64)
    b = -(-n // a)
    left, right = x // b, x % b
    for i in range(_ROUNDS):
        source, target, size = (right, left, a) if i % 2 == 0 else (left, right, b)
        high = mix(key + (source.view(np.uint64) + np.uint64(i << 40)) * np.uint64(_GOLDEN)) >> np.uint64(32)
        target += ((high * size.view(np.uint64)) >> np.uint64(32)).view(np.int64)  # uniform below `size`
        target -= size * (target >= size)
    place: NDArray[np.int64] = left * b + right
    return place
