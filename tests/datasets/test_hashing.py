"""Permutations are permutations, and fair: every one about as often as every other."""

from __future__ import annotations

from functools import cache
from math import factorial, sqrt

import numpy as np
import pytest

from datasets.hashing import MOST_SORTED, derive, feistel, key_of, permutation, permutations, permute

SIZES = [1, 2, 3, 5, 16, 17, 100, 255, 256, 1000, MOST_SORTED, MOST_SORTED + 1, 65537]
KEYS = derive(key_of(0, "test"), np.arange(40_000))


@cache
def tables(n: int) -> np.ndarray:
    """The permutation of 0..n-1 by each key: [K, n]."""
    return permutations(np.full(len(KEYS), n), KEYS)


def is_even(table: np.ndarray) -> np.ndarray:
    """Whether each row has an even number of inversions."""
    inversions = sum((table[:, i : i + 1] > table[:, i + 1 :]).sum(axis=1) for i in range(table.shape[1]))
    return np.asarray(inversions) % 2 == 0


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("function", [permute, feistel])
def test_each_place_is_taken_once(function, n):
    for seed in range(3):
        places = function(np.arange(n), np.array([n]), key_of(seed, "test"))
        assert np.array_equal(np.sort(places), np.arange(n))


@pytest.mark.parametrize("n", SIZES)
def test_a_whole_permutation_is_the_one_of_single_places(n):
    whole = permutation(n, KEYS[:1])
    assert np.array_equal(np.sort(whole), np.arange(n))
    if n <= MOST_SORTED:
        assert np.array_equal(whole, permute(np.arange(n), np.array([n]), KEYS[:1]))
        sizes = np.array([n, 1, n // 2 + 1])
        rows = permutations(sizes, KEYS[:3])
        assert all(np.array_equal(rows[k, :m], permutation(m, KEYS[k : k + 1])) for k, m in enumerate(sizes.tolist()))


def test_places_of_many_permutations_can_be_asked_for_at_once():
    n = np.array([1, 7, 256, MOST_SORTED, MOST_SORTED + 1, 10**12])
    x, keys = n // 2, KEYS[:6]
    together = permute(np.tile(x, 50), np.tile(n, 50), np.tile(keys, 50)).reshape(50, 6)
    assert (together == [permute(x[i], n[i], keys[i : i + 1])[0] for i in range(6)]).all()


@pytest.mark.parametrize("n", [2, 7, 8, 9, 16, 25, 49, 64])
def test_half_of_the_permutations_are_even(n):
    assert abs(is_even(tables(n)).mean() - 0.5) < 4.5 * 0.5 / sqrt(len(KEYS))


def test_half_of_the_permutations_of_an_odd_square_above_the_sorted_ones_are_even():
    n = 65**2  # by the Feistel network alone all are even
    even = []
    for key in KEYS[:400].reshape(-1, 1):
        place, cycles, seen = permute(np.arange(n), np.array([n]), key).tolist(), 0, [False] * n
        for start in range(n):
            cycles += not seen[start]
            while not seen[start]:
                seen[start], start = True, place[start]
        even.append((n - cycles) % 2 == 0)
    assert abs(np.mean(even) - 0.5) < 4.5 * 0.5 / sqrt(len(even))


@pytest.mark.parametrize("n", [3, 4, 5, 6])
def test_all_orders_are_equally_likely(n):
    codes = tables(n) @ n ** np.arange(n)
    _, counts = np.unique(codes, return_counts=True)
    orders = factorial(n)
    expected = len(KEYS) / orders
    assert len(counts) == orders
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi_squared - (orders - 1)) < 4.5 * sqrt(2 * (orders - 1))


@pytest.mark.parametrize("n", [8, 9, 16, 36, 64])
def test_neighbours_stay_neighbours_as_often_as_by_chance(n):
    together = (np.abs(np.diff(tables(n), axis=1)) == 1).sum(axis=1)
    assert abs(together.mean() - 2 * (n - 1) / n) < 4.5 * together.std() / sqrt(len(KEYS))


@pytest.mark.parametrize("n", [5, 16, 100, 256])
def test_every_place_is_sent_everywhere_equally_often(n):
    keys = KEYS[: 40 * n]
    for x in (0, 1, n // 2, n - 1):
        counts = np.bincount(permute(np.full(len(keys), x), np.array([n]), keys), minlength=n)
        chi_squared = ((counts - 40) ** 2 / 40).sum()  # mean n - 1, variance 2 (n - 1)
        assert abs(chi_squared - (n - 1)) < 6 * np.sqrt(2 * (n - 1)) + 6
