"""A keyed 64-bit hash and a keyed permutation of the integers below n, in numpy and our own.

Library generators change between versions; the order of a run's data must not. The hash is the finaliser of
splitmix64 (Steele, Lea and Flood 2014) used as a counter-based function.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: spreads consecutive counters
_MASK = (1 << 64) - 1
_ROUNDS = 6

Words = NDArray[np.uint64]


def mix(words: Words) -> Words:
    """Every bit of the result depends on every bit of the word: uint64 of any shape; products wrap."""
    words = words ^ (words >> np.uint64(30))
    words *= np.uint64(0xBF58476D1CE4E5B9)
    words ^= words >> np.uint64(27)
    words *= np.uint64(0x94D049BB133111EB)
    words ^= words >> np.uint64(31)
    return words


def derive(key: Words, counter: NDArray[Any] | int) -> Words:
    """A new key from a key and a counter (integers of any sign and size; arrays broadcast)."""
    if isinstance(counter, int):
        counter = np.array([counter & _MASK], dtype=np.uint64)
    return mix(key + mix(counter.astype(np.uint64) * np.uint64(_GOLDEN) + np.uint64(_GOLDEN)))


def key_of(seed: int, purpose: str) -> Words:
    """The key, uint64 [1], of a purpose under a seed."""
    key = np.zeros(1, dtype=np.uint64)
    for counter in (seed, *purpose.encode()):
        key = derive(key, counter)
    return key


def permute(x: NDArray[np.int64], n: NDArray[np.int64], key: Words) -> NDArray[np.int64]:
    """The places that a keyed permutation of 0..n-1 gives to x: int64 [N]; x, n (above x) and key broadcast to [N].

    A Feistel network over the a x b grid with a = ceil(sqrt n) and b = ceil(n / a), so that few cells lie beyond n,
    and cycle walking (Black and Rogaway 2002, "Ciphers with arbitrary finite domains") until the place is below n.
    O(1) in memory and time for each x.
    """
    x, n, key = np.broadcast_arrays(x, n, key)
    place = _network(x, n, key)
    outside = np.flatnonzero(place >= n)
    while outside.size:
        place[outside] = _network(place[outside], n[outside], key[outside])
        outside = outside[place[outside] >= n[outside]]
    return place


def _network(x: NDArray[np.int64], n: NDArray[np.int64], key: Words) -> NDArray[np.int64]:
    a = np.ceil(np.sqrt(n)).astype(np.int64)
    b = -(-n // a)
    left, right = x // b, x % b
    for i in range(_ROUNDS):
        source, target, size = (right, left, a) if i % 2 == 0 else (left, right, b)
        high = mix(key + (source.view(np.uint64) + np.uint64(i << 40)) * np.uint64(_GOLDEN)) >> np.uint64(32)
        target += ((high * size.view(np.uint64)) >> np.uint64(32)).view(np.int64)  # uniform below `size`
        target -= size * (target >= size)
    return left * b + right
