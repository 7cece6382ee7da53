"""A set as it is found in the wild: every sample accounted for, the rest trained on exactly once, and selected from."""

from __future__ import annotations

import re
from typing import NamedTuple

import pytest

from cluster.storage.storage import Storage
from datasets.config import DataConfig, TransformConfig
from datasets.loading.build import training_batches
from datasets.selection.query import Wanted
from datasets.selection.select import select
from datasets.shards.index import Index
from datasets.shards.indexing import Indexed, IndexOptions, index_shards
from jobs.run.ledger import Ledger
from tests.datasets.wild_set import BAD, kind_of, layout_of, score_of, size_of, write_wild

BATCH = 16


class Wild(NamedTuple):
    url: str
    images: int
    bad: dict[str, str]  # pattern of the reason by key
    done: Indexed

    @property
    def good(self) -> list[int]:
        """The samples that can be used."""
        return [number for number in range(self.images - 1) if not kind_of(number)]


@pytest.fixture(scope="module", params=[750, pytest.param(5000, marks=pytest.mark.slow)])
def wild(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Wild:
    folder = tmp_path_factory.mktemp("wild") / "set"
    bad = write_wild(folder, request.param)
    columns = ("json.similarity", "json.NSFW", "parquet")
    done = index_shards(str(folder), f"{folder}/index", IndexOptions(columns=columns))
    return Wild(str(folder), request.param, bad, done)


def numbers_of(index: Index) -> list[int]:
    """The samples of an index, by their labels."""
    return [label for n in range(len(index)) for label in index.columns(n).column("label").to_pylist()]


def test_every_sample_is_accounted_for_with_its_reason(wild):
    assert len(BAD) >= 20
    reasons = {row["key"]: row["reason"] for row in wild.done.quarantine.to_pylist()}
    assert "unexpected end of data" in reasons.pop("")
    assert reasons.keys() == wild.bad.keys()
    for key, reason in reasons.items():
        assert re.search(wild.bad[key], reason), (key, reason)
    index = Index.open(wild.url)
    assert numbers_of(index) == wild.good
    assert index.images + index.quarantined == wild.images
    seen = {kind_of(number) for number in range(wild.images)}
    assert len(seen - {""}) >= 20


def labels_by_position(wild: Wild, index: Index, start: int, stop: int, ranks: int = 1) -> dict[int, int]:
    """The labels of the images [start, stop) of training, as some ranks get them; start is a number of batches."""
    (location,) = (folder.location for folder in index.folders)
    config = DataConfig(
        shards=wild.url, index=location, transform=TransformConfig(size=(8, 8)), workers=0, window=32, streams=4
    )
    found: dict[int, int] = {}
    for rank in range(ranks):
        with training_batches(config, index, seed=3, batch=BATCH, ranks=ranks, rank=rank, start=start) as batches:
            for _ in range(start, stop, BATCH):
                batch = next(batches)
                there = batch.weights > 0
                pairs = zip(batch.positions[there].tolist(), batch.conditions["label"][there].tolist(), strict=True)
                found |= {position: label for position, label in pairs if position < stop}
    return found


def test_the_rest_is_trained_on_exactly_once_and_resumed_on_two_ranks(wild, tmp_path):
    index = Index.open(wild.url)
    M = index.images
    half = M // BATCH // 2 * BATCH
    seen = labels_by_position(wild, index, 0, half) | labels_by_position(wild, index, half, M, ranks=2)
    assert sorted(seen) == list(range(M))
    assert sorted(seen.values()) == wild.good
    ledger = Ledger(DataConfig(shards=wild.url), index, Storage(str(tmp_path)))
    row = ledger.row(M)
    assert row["data/samples"] == row["data/indexed"] + row["data/quarantined_by_index"] == wild.images
    assert row["ledger"] == [{"epoch": 0, "expected": M, "seen": M, "quarantined": 0}]


@pytest.mark.parametrize(
    ("where", "holds"),
    [
        ("width >= 32 AND height >= 24", lambda n: size_of(n)[0] >= 32 and size_of(n)[1] >= 24),
        ("json.similarity > 0.795 AND json.NSFW = 'UNLIKELY'", lambda n: score_of(n) > 0.795 and n % 3 == 0),
        ("parquet.similarity < 0.055", lambda n: score_of(n) < 0.055 and n % 4 and layout_of(n) == "img2dataset"),
        ("format = 'webp'", lambda n: n % 5 == 3),
        ("caption_length = length('caption 77')", lambda n: len(str(n)) == 2),
    ],
)
def test_selections_have_the_samples_that_are_counted_by_hand(wild, tmp_path, where, holds):
    pytest.importorskip("duckdb")
    sizes = {number: (7 if number % 50 == 7 else number) for number in wild.good}
    expected = [n for n in wild.good if holds(sizes[n] if where.startswith("width") else n)]
    assert expected
    select(Index.open(wild.url), str(tmp_path), Wanted(where))
    selected = Index.open(wild.url, str(tmp_path))
    assert numbers_of(selected) == expected
    seen = labels_by_position(wild, selected, 0, len(expected))
    assert sorted(seen.values()) == expected


def test_duplicates_are_removed(wild, tmp_path):
    pytest.importorskip("duckdb")
    done = select(Index.open(wild.url), str(tmp_path), Wanted("", "crc"))
    kept = [number for number in wild.good if number % 50 != 7 or number == 7]
    assert numbers_of(Index.open(wild.url, str(tmp_path))) == kept
    assert done.found.matching - done.found.distinct == len(wild.good) - len(kept)
