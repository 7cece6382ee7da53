"""Mixed sets keep their weights, and each is seen exactly once per epoch of its own."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.config import DataConfig, MixedSet, TransformConfig
from datasets.errors import DataError
from datasets.loading.build import evaluation_batches, training_batches
from datasets.order.mixed import MixedOrder
from datasets.order.order import Window
from datasets.order.shuffled import ShuffledOrder
from datasets.packing.encoding import encode
from datasets.shards.index import Index
from datasets.shards.indexing import IndexOptions, index_shards
from tests.datasets.small_sets import locate, number_of, write_members, write_set

SETS = st.lists(
    st.tuples(st.lists(st.integers(0, 15), min_size=1, max_size=5).filter(any), st.integers(1, 4)),
    min_size=1,
    max_size=4,
)


def mix(sets: list[tuple[list[int], int]], seed: int, streams: int, window: int) -> MixedOrder:
    counts = [count for part, _ in sets for count in part]
    bounds = np.cumsum([0, *(len(part) for part, _ in sets)])
    return MixedOrder(np.array(counts), bounds, [weight for _, weight in sets], seed, streams, window)


@given(SETS, st.integers(0, 1000), st.integers(1, 6), st.integers(1, 20))
@settings(max_examples=50, deadline=None)
def test_each_set_is_seen_once_per_epoch_and_in_proportion_to_its_weight(sets, seed, streams, window):
    mixture = mix(sets, seed, streams, window)
    total = sum(weight for _, weight in sets)
    cycles = 1 + 2 * max(-(-sum(part) // (streams * weight)) for part, weight in sets)
    positions = np.arange(cycles * total * streams)
    source, inner = mixture.inner(positions)
    located, places = locate(mixture, positions), mixture.places(positions)
    for i, (part, weight) in enumerate(sets):
        here = source == i
        assert here.sum() == cycles * weight * streams
        assert (here.reshape(-1, total * streams).sum(axis=1) == weight * streams).all()
        assert inner[here].tolist() == list(range(cycles * weight * streams))
        first, images = int(mixture._bounds[i]), sum(part)
        seen = list(zip(located.shard[here].tolist(), located.index[here].tolist(), strict=True))
        everything = Counter((first + s, j) for s, count in enumerate(part) for j in range(count))
        for start in range(0, len(seen) - images + 1, images):
            assert Counter(seen[start : start + images]) == everything
    for row in range(0, len(positions), 7):
        window_name = Window(*(int(column[row]) for column in places[:4]))
        slots = [(part.shard, j) for part in mixture.ranges(window_name) for j in range(part.start, part.stop)]
        assert slots[int(places.slot[row])] == (located.shard[row], located.index[row])
        assert mixture.following(window_name).source == window_name.source


def test_a_mixture_of_one_set_has_the_order_of_that_set():
    one, order = mix([([7, 9, 30], 1)], 5, 4, 8), ShuffledOrder(np.array([7, 9, 30]), 5, 4, 8)
    for ours, theirs in zip(locate(one, np.arange(200)), locate(order, np.arange(200)), strict=True):
        assert np.array_equal(ours, theirs)


def test_two_copies_of_a_set_have_different_orders():
    mixture = mix([([50], 1), ([50], 1)], 5, 2, 50)
    source, _ = mixture.inner(np.arange(200))
    index = locate(mixture, np.arange(200)).index
    assert (index[source == 0] != index[source == 1]).mean() > 0.8


@pytest.fixture
def sets(tmp_path):
    write_set(tmp_path / "a", [9, 8])
    write_set(tmp_path / "b", [30, 20, 11])
    return tmp_path


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_from_both_sets_by_weight(sets, workers):
    mixture = (MixedSet(shards=str(sets / "a"), weight=1), MixedSet(shards=str(sets / "b"), weight=3))
    config = DataConfig(mixture=mixture, streams=4, window=8, workers=workers, cache=0)
    index = Index.of(config)
    assert index.images == 78
    with training_batches(config, index, seed=3, batch=16) as batches:
        taken = [next(batches) for _ in range(40)]
    source, _ = MixedOrder(index.counts, index.set_bounds, (1, 3), 3, 4, 8).inner(np.arange(640))
    numbers = np.array([number_of(image.numpy()) for batch in taken for image in batch.images])
    assert [sum(source[16 * k : 16 * k + 16] == 0) for k in range(40)] == [4] * 40
    assert Counter(numbers[source == 0][: 9 * 17].tolist()) == Counter(dict.fromkeys(range(17), 9))
    assert Counter(numbers[source == 1][: 7 * 61].tolist()) == Counter(dict.fromkeys(range(61), 7))


def test_lists_and_patterns_are_one_set_without_weights(sets):
    whole = Index.open([str(sets / "a"), str(sets / "b")])
    assert (whole.counts.tolist(), whole.images) == ([9, 8, 30, 20, 11], 78)
    assert [whole.where(number) for number in (1, 2)] == [f"{sets}/a/0001.tar", f"{sets}/b/0000.tar"]
    some = Index.open([f"{sets}/b/{{0000..0001}}.tar", f"{sets}/a/*1.tar", f"{sets}/b/0002.tar"])
    assert some.counts.tolist() == [30, 20, 8, 11]
    config = DataConfig(shards=(str(sets / "a"), str(sets / "b")), streams=2, workers=0)
    with training_batches(config, Index.of(config), seed=1, batch=26) as batches:
        numbers = Counter(number_of(image.numpy()) for _ in range(3) for image in next(batches).images)
    assert numbers == Counter(range(17)) + Counter(range(61))


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("b/{0000..0007}.tar", "no shard 0003.tar and 4 more"),
        ("b/x*.tar", r"none matches x\*\.tar"),
        ("b/{0000", "braces of the pattern do not match"),
    ],
)
def test_a_pattern_without_matches_is_a_one_line_error(sets, pattern, message):
    with pytest.raises(DataError, match=message):
        Index.open(f"{sets}/{pattern}")


def test_sets_of_different_formats_are_not_mixed(sets):
    write_set(sets / "colour", [3], channels=3)
    with pytest.raises(DataError, match=r"colour and .*/a differ and cannot be one set: channels 3 and 1"):
        Index.open([str(sets / "a"), str(sets / "colour")])


def test_sets_without_labels_in_common_are_one_set_without_labels(sets):
    assert Index.open([str(sets / "a"), str(sets / "b")]).labels_differ == ""
    write_set(sets / "plain", [3], labels=False)
    for pair in (["a", "plain"], ["plain", "a"]):
        index = Index.open([str(sets / name) for name in pair])
        assert index.labels_differ == f"{sets}/a has labels and {sets}/plain has none"
        assert (index.classes, index.images) == (0, 20)
    config = DataConfig(shards=(str(sets / "a"), str(sets / "plain")), workers=0)
    with evaluation_batches(config, index, batch=20) as batches:
        assert sum(int((batch.weights > 0).sum()) for batch in batches) == 20
    named = [str(sets / name) for name in ("a", "b")]
    for url, names in zip(named, (("x",) * 10, ("y",) * 10), strict=True):
        index_shards(url, f"{url}/index", IndexOptions(class_names=names))
    index = Index.open(named)
    assert index.labels_differ.startswith(f"{sets}/b and {sets}/a have different classes: y, y, ")
    assert (index.classes, index.meta.class_names) == (0, ())


def test_sets_of_different_sizes_are_one_set_with_a_transform(sets, tmp_path):
    write_members(tmp_path / "large/0.tar", [("x.png", encode(np.zeros((9, 9, 1), np.uint8), "png")), ("x.cls", b"3")])
    index_shards(f"{tmp_path}/large", f"{tmp_path}/large/index")
    index = Index.open([str(sets / "a"), f"{tmp_path}/large"])
    config = DataConfig(shards=(str(sets / "a"), f"{tmp_path}/large"), workers=0)
    with pytest.raises(DataError, match=r"large/0\.tar: images differ in size.*set data\.transform\.size"):
        evaluation_batches(config, index, batch=4)
    config = config.model_copy(update={"transform": TransformConfig(size=(4, 4))})
    with evaluation_batches(config, index, batch=50) as batches:
        assert sum(int((batch.weights > 0).sum()) for batch in batches) == index.images


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "either shards or mixture"),
        ({"shards": "a", "mixture": ({"shards": "b"},)}, "either shards or mixture"),
        ({"shards": ("a", "b"), "index": "c"}, "index has 1 URLs for 2 entries of shards; it has one for each"),
        ({"shards": "a", "index": ("c", "d")}, "index has 2 URLs for 1 entries of shards"),
        (
            {"shards": "a", "validation": "b", "validation_index": ("c", "d")},
            "validation_index has 2 URLs for 1 entries of validation",
        ),
        ({"mixture": [{"shards": ("a", "b"), "index": ("c",)}]}, "index has 1 URLs for 2 entries of shards"),
        (
            {"mixture": [{"shards": "a"}], "index": "c"},
            "index goes with shards; the sets of a mixture have an index each",
        ),
        ({"mixture": ({"shards": "b", "weight": 0},)}, "greater than or equal to 1"),
        ({"shards": "a", "memory": "lots"}, "not a number of bytes"),
    ],
)
def test_a_wrong_section_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**settings)


def test_byte_sizes_are_parsed_and_paths_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = DataConfig(mixture=({"shards": ("a", "s3://b/c/")},), validation="v", memory="1.5GiB", cache="2MB")
    assert (config.memory, config.cache) == (3 << 29, 2_000_000)
    there = config.absolute()
    assert there.mixture[0].shards == (f"{tmp_path}/a", "s3://b/c")
    assert (there.validation, there.shards) == (f"{tmp_path}/v", "")
