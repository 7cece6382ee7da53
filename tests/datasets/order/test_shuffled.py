"""The order has every image once per epoch, is a pure function, and reads each shard in few ranges."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.errors import DataError
from datasets.order.correlation import epoch_correlation, poor_shuffle
from datasets.order.dealing import check_batch, deal, largest_share
from datasets.order.mixed import MixedOrder
from datasets.order.order import Window
from datasets.order.shuffled import ShuffledOrder
from datasets.order.training_steps import TrainingSteps
from tests.datasets.small_sets import locate

VERSIONS = (1, 2)
COUNTS = st.lists(st.integers(0, 40), min_size=1, max_size=20).filter(lambda counts: sum(counts) > 0)


@pytest.mark.parametrize("version", VERSIONS)
@given(COUNTS, st.integers(-(2**70), 2**70), st.integers(1, 20), st.integers(1, 50))
@settings(max_examples=60, deadline=None)
def test_every_image_is_in_each_of_three_epochs_once(version, counts, seed, streams, window):
    order = ShuffledOrder(np.array(counts), seed, streams, window, version)
    epoch, shard, index = locate(order, np.arange(3 * order.images))
    everything = sorted((s, i) for s, count in enumerate(counts) for i in range(count))
    for e in range(3):
        here = epoch == e
        assert sorted(zip(shard[here].tolist(), index[here].tolist(), strict=True)) == everything


@pytest.mark.parametrize("version", VERSIONS)
@given(COUNTS, st.integers(1, 20), st.integers(1, 50), st.integers(0, 2))
@settings(max_examples=60, deadline=None)
def test_windows_have_the_images_of_the_positions_and_follow_each_other(version, counts, streams, window, epochs):
    order = ShuffledOrder(np.array(counts), 3, streams, window, version)
    positions = np.arange(epochs * order.images, (epochs + 2) * order.images)
    places, located = order.places(positions), locate(order, positions)
    current: dict[int, Window] = {}
    slots: dict[Window, list[tuple[int, int]]] = {}
    for *name, slot, shard, index in zip(*(column.tolist() for column in (*places, *located[1:])), strict=True):
        at = Window(*name)
        if current.get(at.stream) != at:
            slots[at] = [(part.shard, i) for part in order.ranges(at) for i in range(part.start, part.stop)]
            assert len(slots[at]) <= window
            if at.stream in current:
                assert at == order.following(current[at.stream])
            current[at.stream] = at
        assert slots[at][slot] == (shard, index)


@pytest.mark.parametrize("window", [8, 5000])
@pytest.mark.parametrize("version", VERSIONS)
def test_positions_can_be_located_in_any_order_and_number(version, window):
    order = ShuffledOrder(np.array([7, 0, 30, 5]) * window // 8, 1, 2 if window > 8 else 4, window, version)
    positions = np.random.default_rng(0).permutation(3 * order.images)[:2000]
    whole = locate(order, positions)
    for row in range(0, len(positions), 1 + len(positions) // 30):
        assert [int(column[row]) for column in whole] == [int(c[0]) for c in locate(order, positions[row : row + 1])]
    assert all(len(column) == 0 for column in locate(order, positions[:0]))


@pytest.mark.parametrize("version", VERSIONS)
def test_windows_with_more_images_than_are_sorted_hold_each_image_once(version):
    order = ShuffledOrder(np.array([9000, 3001]), 1, 2, 5000, version)
    _, shard, index = locate(order, np.arange(order.images))
    assert np.array_equal(np.sort(shard * 9000 + index), np.arange(order.images))


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        (1, "c6b41c58068e6992392db1e176e2156b8dc2e9956d1d0eb544a3497d33be0ec8"),
        (2, "434566a9fbb37cf15dc4e5f31642cde233961bef9b734b240b893480c79fb211"),
    ],
)
def test_the_order_never_changes(version, expected):
    order = ShuffledOrder(np.array([100, 3, 57, 400, 0, 41]), 20231, 6, 32, version)
    located = locate(order, np.arange(2000))
    digest = hashlib.sha256(b"".join(column.astype("<i8").tobytes() for column in located)).hexdigest()
    assert digest == expected


def test_an_order_of_a_newer_release_is_refused():
    with pytest.raises(DataError, match="version 3 of the order of the images is not known here; the newest is 2"):
        ShuffledOrder(np.array([3]), 1, 1, 1, 3)


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


def test_in_version_1_a_shard_is_read_by_one_stream_or_by_two_where_spans_meet():
    order = ShuffledOrder(np.full(32, 100), 4, 8, 50, 1)
    place = locate(order, np.arange(order.images))
    stream = np.arange(order.images) % 8
    readers = [set(stream[place.shard == shard].tolist()) for shard in range(32)]
    assert all(len(reader) == 1 for reader in readers)  # 400 images, four whole shards, a span
    uneven = ShuffledOrder(np.full(30, 100), 4, 8, 50, 1)
    place = locate(uneven, np.arange(uneven.images))
    readers = [set((np.flatnonzero(place.shard == shard) % 8).tolist()) for shard in range(30)]
    assert max(map(len, readers)) == 2


@pytest.mark.parametrize(
    ("shards", "images", "most", "mean"),
    [(8, 6250, 9, 5.5), (1, 50_000, 9, 5.5), (8, 100_000, 3, 1.5), (50, 4, 65, 60)],
)
def test_version_2_reads_a_window_in_a_few_ranges(shards, images, most, mean):
    order = ShuffledOrder(np.full(shards, images), 4, 64, 256)
    windows = [Window(0, 0, c, number) for c in range(64) for number in range(order._windows(0, c))]
    ranges = [order.ranges(window) for window in windows]
    assert sum(part.stop - part.start for parts in ranges for part in parts) == order.images
    assert max(map(len, ranges)) <= most
    assert np.mean([len(parts) for parts in ranges]) <= mean


def test_windows_of_different_streams_begin_at_different_steps():
    order = ShuffledOrder(np.full(16, 1000), 4, 8, 200)
    begins = [
        {step for step in range(1, 1500) if numbers[step] != numbers[step - 1]}
        for numbers in (order.places(np.arange(1500) * 8 + stream).number for stream in range(8))
    ]
    assert all(not a & b for i, a in enumerate(begins) for b in begins[i + 1 :])


# ---- epochs


def times(order: ShuffledOrder, epoch: int) -> np.ndarray:
    """When each image of the set comes in an epoch."""
    located = locate(order, np.arange(epoch * order.images, (epoch + 1) * order.images))
    place = np.empty(order.images)
    place[order._bounds[located.shard] + located.index] = np.arange(order.images)
    return place


@pytest.mark.parametrize("streams", [64, 8])
@pytest.mark.parametrize("shards", [1, 8, 16, 100])
def test_an_epoch_does_not_remember_the_one_before(shards, streams):
    order = ShuffledOrder(np.diff(np.arange(shards + 1) * 50_000 // shards), 7, streams, 256)
    epochs = [times(order, epoch) for epoch in range(4)]
    correlations = np.corrcoef(epochs)[np.triu_indices(4, 1)]
    assert np.abs(correlations).max() < 0.1
    estimates = [epoch_correlation(order, epoch) for epoch in range(3)]
    assert np.allclose(estimates, np.corrcoef(epochs)[[0, 1, 2], [1, 2, 3]], atol=0.015)


def test_the_warning_is_about_orders_that_remember():
    counts = np.full(8, 6250)
    old = ShuffledOrder(counts, 7, 64, 256, 1)
    assert np.corrcoef(times(old, 0), times(old, 1))[0, 1] == pytest.approx(epoch_correlation(old, 0), abs=0.015)
    assert poor_shuffle(old).startswith(
        "the time of an image in an epoch correlates by 0.80 with its time in the next: the set has 8 shards, and the "
    )
    assert poor_shuffle(ShuffledOrder(counts, 7, 64, 256)) == ""
    assert poor_shuffle(ShuffledOrder(np.full(100, 500), 7, 64, 256, 1)) == ""
    few = poor_shuffle(ShuffledOrder(np.array([1000]), 7, 1, 256))
    assert few.endswith(
        "1000 images are few for data.streams=1, data.window=256; more streams or smaller windows shuffle better"
    )
    mixture = MixedOrder(np.array([10, *counts]), np.array([0, 1, 9]), [1, 1], 7, 64, 256, 1)
    assert poor_shuffle(mixture).startswith(
        "the time of an image of set 2 of the mixture in an epoch correlates by 0.8"
    )
