"""The order has every image once per epoch, is a pure function, and reads each shard in few ranges."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.errors import DataError
from datasets.hashing import key_of, permute
from datasets.order.dealing import check_batch, deal, largest_share
from datasets.order.order import Window
from datasets.order.shuffled import ShuffledOrder
from datasets.order.training_steps import TrainingSteps
from tests.datasets.small_sets import locate

COUNTS = st.lists(st.integers(0, 40), min_size=1, max_size=20).filter(lambda counts: sum(counts) > 0)


@given(COUNTS, st.integers(-(2**70), 2**70), st.integers(1, 20), st.integers(1, 50))
@settings(max_examples=60, deadline=None)
def test_every_image_is_in_each_of_three_epochs_once(counts, seed, streams, window):
    order = ShuffledOrder(np.array(counts), seed, streams, window)
    epoch, shard, index = locate(order, np.arange(3 * order.images))
    everything = sorted((s, i) for s, count in enumerate(counts) for i in range(count))
    for e in range(3):
        here = epoch == e
        assert sorted(zip(shard[here].tolist(), index[here].tolist(), strict=True)) == everything


@given(COUNTS, st.integers(1, 20), st.integers(1, 50), st.integers(0, 2))
@settings(max_examples=60, deadline=None)
def test_windows_have_the_images_of_the_positions_and_follow_each_other(counts, streams, window, epochs):
    order = ShuffledOrder(np.array(counts), 3, streams, window)
    positions = np.arange(epochs * order.images, (epochs + 2) * order.images)
    places, located = order.places(positions), locate(order, positions)
    current: dict[int, Window] = {}
    for row in range(len(positions)):
        at = Window(*(int(column[row]) for column in places[:4]))
        slots = [(part.shard, i) for part in order.ranges(at) for i in range(part.start, part.stop)]
        assert len(slots) <= window
        assert slots[int(places.slot[row])] == (located.shard[row], located.index[row])
        before = current.get(at.stream, at)
        assert at in (before, order.following(before))
        current[at.stream] = at


def test_positions_can_be_located_in_any_order_and_number():
    order = ShuffledOrder(np.array([7, 0, 30, 5]), 1, 4, 8)
    positions = np.random.default_rng(0).permutation(3 * order.images)
    whole = locate(order, positions)
    for row in range(0, len(positions), 5):
        assert [int(column[row]) for column in whole] == [int(c[0]) for c in locate(order, positions[row : row + 1])]
    assert all(len(column) == 0 for column in locate(order, positions[:0]))


def test_the_order_never_changes():
    order = ShuffledOrder(np.array([100, 3, 57, 400, 0, 41]), 20231, 6, 32)
    located = locate(order, np.arange(2000))
    digest = hashlib.sha256(b"".join(column.astype("<i8").tobytes() for column in located)).hexdigest()
    assert digest == "c6b41c58068e6992392db1e176e2156b8dc2e9956d1d0eb544a3497d33be0ec8"


def test_ten_billion_images_can_be_located():
    order = ShuffledOrder(np.full(100_000, 100_000), 5, 64, 256)
    epoch, shard, index = locate(order, np.array([0, 10**10 - 1, 10**10, 3 * 10**10 + 12345]))
    assert epoch.tolist() == [0, 0, 1, 3]
    assert ((shard >= 0) & (shard < 100_000) & (index >= 0) & (index < 100_000)).all()


def test_seeds_and_epochs_give_different_orders():
    counts = np.full(20, 50)
    first, again, other = (locate(ShuffledOrder(counts, seed, 4, 25), np.arange(2000)) for seed in (1, 1, 2))
    assert (first.shard == again.shard).all()
    assert (first.index == again.index).all()
    assert (first.shard[:1000] == other.shard[:1000]).mean() < 0.3
    assert (first.shard[:1000] == first.shard[1000:]).mean() < 0.3


@pytest.mark.parametrize("n", [1, 2, 3, 5, 16, 17, 100, 255, 256, 1000, 65537])
def test_permute_is_a_permutation(n):
    for seed in range(5):
        places = permute(np.arange(n), np.array([n]), key_of(seed, "test"))
        assert np.array_equal(np.sort(places), np.arange(n))


@pytest.mark.parametrize("n", [5, 16, 100, 256])
def test_the_permutation_is_uniform(n):
    keys = np.concatenate([key_of(seed, "test") for seed in range(40 * n)])
    for x in (0, 1, n // 2, n - 1):
        places = permute(np.full(len(keys), x), np.full(len(keys), n), keys)
        counts = np.bincount(places, minlength=n)
        chi_squared = ((counts - 40) ** 2 / 40).sum()  # mean n - 1, variance 2 (n - 1)
        assert abs(chi_squared - (n - 1)) < 6 * np.sqrt(2 * (n - 1)) + 6


def test_the_permutation_separates_neighbours():
    places = permute(np.arange(256), np.array([256]), key_of(0, "test"))
    assert (np.abs(np.diff(places)) == 1).sum() < 12  # a shuffle has 2 on average
    keys = np.concatenate([key_of(seed, "test") for seed in range(4000)])
    a, b = (permute(np.full(4000, x), np.full(4000, 64), keys) for x in (10, 11))
    together = Counter(((a - b) % 64).tolist())
    assert set(together) == set(range(1, 64))
    assert max(together.values()) < 2 * 4000 / 63


@pytest.mark.parametrize(("streams", "readers"), [(8, 1), (8, 3), (7, 7), (64, 10), (5, 2)])
def test_streams_are_dealt_evenly_to_readers(streams, readers):
    shares = [deal(streams, readers, reader) for reader in range(readers)]
    assert [stream for share in shares for stream in share] == list(range(streams))
    assert {len(share) for share in shares} <= {streams // readers, -(-streams // readers)}
    assert max(map(len, shares)) * 6 == largest_share(6 * streams, streams, readers)


def test_more_readers_than_streams_are_refused():
    with pytest.raises(DataError, match="at least 9 streams"):
        deal(8, 9, 0)


def test_a_batch_that_the_streams_do_not_divide_is_refused_with_a_number_that_does():
    check_batch(96, 8)
    with pytest.raises(DataError, match=r"must divide the global batch of 100 images: 10 does"):
        check_batch(100, 8)


def test_a_set_without_images_is_refused():
    with pytest.raises(DataError, match="no images"):
        ShuffledOrder(np.array([0, 0]), 1, 1, 1)


@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 100), st.data())
def test_the_ranks_shares_make_up_the_batch(streams, times, step, data):
    ranks, batch = data.draw(st.integers(1, streams)), streams * times
    shares = [TrainingSteps(0, batch, streams, 1, ranks, rank).share(step).positions for rank in range(ranks)]
    assert sorted(np.concatenate(shares).tolist()) == list(range(step * batch, (step + 1) * batch))
    assert all((np.diff(share) > 0).all() for share in shares)
    assert max(map(len, shares)) == largest_share(batch, streams, ranks)


def test_a_shard_is_read_by_one_stream_or_by_two_where_spans_meet():
    order = ShuffledOrder(np.full(32, 100), 4, 8, 50)
    place = locate(order, np.arange(order.images))
    stream = np.arange(order.images) % 8
    readers = [set(stream[place.shard == shard].tolist()) for shard in range(32)]
    assert all(len(reader) == 1 for reader in readers)  # 400 images, four whole shards, a span
    uneven = ShuffledOrder(np.full(30, 100), 4, 8, 50)
    place = locate(uneven, np.arange(uneven.images))
    readers = [set((np.flatnonzero(place.shard == shard) % 8).tolist()) for shard in range(30)]
    assert max(map(len, readers)) == 2


def test_windows_of_different_streams_begin_at_different_steps():
    order = ShuffledOrder(np.full(16, 1000), 4, 8, 200)
    begins = [
        {step for step in range(1, 1500) if numbers[step] != numbers[step - 1]}
        for numbers in (order.places(np.arange(1500) * 8 + stream).number for stream in range(8))
    ]
    assert all(not a & b for i, a in enumerate(begins) for b in begins[i + 1 :])
