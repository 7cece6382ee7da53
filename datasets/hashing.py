"""A keyed 64-bit hash and keyed permutations of 0..n-1, in numpy.

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
_BITS = 12  # of a sorted hash hold the entry itself, and more if there are more entries
_CHUNK = 1 << 16  # entries hashed at a time: bounds temporary memory

MOST_SORTED = 1 << _BITS
"""Above this n, `permute` computes each place on its own."""

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


def uniform(key: Key) -> NDArray[np.float64]:
    """Numbers in [0, 1), multiples of 2^-53, from the bits of keys: float64 of the same shape."""
    return (key >> np.uint64(11)).astype(np.float64) * 2.0**-53


def key_of(seed: int, purpose: str) -> Key:
    """The key, uint64 [1], for a purpose under a seed."""
    key = np.zeros(1, dtype=np.uint64)
    for counter in (seed, *purpose.encode()):
        key = derive(key, counter)
    return key


def permutation(n: int, key: Key) -> NDArray[np.int64]:
    """A fair permutation of 0..n-1, int64 [n], by a key [1]: the entries sorted by a keyed hash.

    Takes 8 n bytes. Two of n entries share the bits of the hash that are compared with probability below n^3 / 2^64 (n
    above 4,096) or 2^-29; these stay in their order.
    """
    bits = np.uint64(max(_BITS, (n - 1).bit_length()))
    values = np.empty(n, dtype=np.uint64)
    for begin in range(0, n, _CHUNK):
        entries = np.arange(begin, min(begin + _CHUNK, n), dtype=np.uint64)
        values[begin : begin + _CHUNK] = derive(key, entries) >> bits << bits | entries
    values.sort()
    values &= (np.uint64(1) << bits) - np.uint64(1)
    return values.view(np.int64)


def permutations(n: NDArray[np.int64], key: Key) -> NDArray[np.int64]:
    """Row k begins with `permutation(n[k], key[k])`: int64 [K, max n]; n (at most `MOST_SORTED`) and key are [K]."""
    bits = np.uint64(_BITS)
    entries = np.arange(n.max(initial=0), dtype=np.uint64)
    values = derive(key[:, None], entries) >> bits << bits | entries
    values[entries >= n.view(np.uint64)[:, None]] = _MASK
    values.sort(axis=1)
    values &= np.uint64(MOST_SORTED - 1)
    return values.view(np.int64)


def permute(x: NDArray[np.int64], n: NDArray[np.int64], key: Key) -> NDArray[np.int64]:
    """Where a fair permutation of 0..n-1 sends x: int64 [N]; x, n (above x) and key broadcast to [N].

    `permutation` up to n = `MOST_SORTED`: O(n) per x. Above that O(1): `feistel`, then an exchange of 0 and 1 by the
    toss of a coin, without which some n would have even permutations only.
    """
    x, n, key = np.broadcast_arrays(x, n, key)
    place, small = np.empty(x.shape, dtype=np.int64), n <= MOST_SORTED
    place[small] = _sorted(x[small], n[small], key[small])
    x, n, key = x[~small], n[~small], key[~small]
    large = feistel(x, n, key)
    coin = (derive(key, -1) >> np.uint64(63)).view(np.int64)
    place[~small] = np.where(large < 2, large ^ coin, large)
    return place


def _sorted(x: NDArray[np.int64], n: NDArray[np.int64], key: Key) -> NDArray[np.int64]:
    """`permute` for n up to `MOST_SORTED`."""
    place = np.empty(x.shape, dtype=np.int64)
    _, first, row = np.unique(derive(key, n), return_index=True, return_inverse=True)
    at_once = max(1, _CHUNK // int(n.max(initial=1)))
    for begin in range(0, len(first), at_once):
        some = first[begin : begin + at_once]
        here = (row >= begin) & (row < begin + at_once)
        place[here] = permutations(n[some], key[some])[row[here] - begin, x[here]]
    return place


def feistel(x: NDArray[np.int64], n: NDArray[np.int64], key: Key) -> NDArray[np.int64]:
    """Where a keyed permutation of 0..n-1 sends x: int64 [N]; x, n (above x) and key broadcast to [N].

    Not fair for small n: an odd a = b, for example, makes every permutation even. `permute` is fair.

    A Feistel network over the a x b grid with a = ceil(sqrt n) and b = ceil(n / a), so that few cells are outside
    0..n-1, and cycle walking (Black and Rogaway 2002, "Ciphers with arbitrary finite domains") back into the range.
    O(1) in memory and time per x.
    """
    x, n, key = np.broadcast_arrays(x, n, key)
    place = _encrypt(x, n, key)
    outside = np.flatnonzero(place >= n)
    while outside.size:
        place[outside] = _encrypt(place[outside], n[outside], key[outside])
        outside = outside[place[outside] >= n[outside]]
    return place


def _encrypt(x: NDArray[np.int64], n: NDArray[np.int64], key: Key) -> NDArray[np.int64]:
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
