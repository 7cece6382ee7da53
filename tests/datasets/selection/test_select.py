"""Selections: which samples they have, and that they are sets like any other."""

from __future__ import annotations

import builtins
import hashlib
import itertools
import json

import numpy as np
import pyarrow as pa
import pytest

from cluster.storage.storage import Storage
from datasets.config import DataConfig
from datasets.errors import DataError
from datasets.loading.build import training_batches
from datasets.reading.verify import verify_shard
from datasets.selection.query import Wanted
from datasets.selection.select import select
from datasets.shards.column_tables import write_columns
from datasets.shards.index import Index
from datasets.shards.indexing import index_shards
from tests.datasets.selection.scored_sets import IMAGES, SHARDS, score, write_scored
from tests.datasets.small_sets import png, write_members

pytest.importorskip("duckdb")
ALL = range(SHARDS * IMAGES)


def keys(index: Index) -> list[int]:
    """The numbers of the samples of an index."""
    return [int(key) for n in range(len(index)) for key in index.members(n).column("key").to_pylist()]


def chosen(index: Index, out: str, where: str = "", **options: object) -> list[int]:
    """The samples that a condition selects."""
    derived = options.pop("derived", ())
    select(index, out, Wanted(where, **options), derived=derived)
    return keys(Index.open(index.folders[0].url, out))


@pytest.fixture(scope="module")
def scored(tmp_path_factory) -> Index:
    return write_scored(tmp_path_factory.mktemp("scored"))


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("json.score > 0.45", [n for n in ALL if (score(n) or 0) > 0.45]),
        ("JSON.Score IS NULL", [n for n in ALL if score(n) is None]),
        ("json.meta.name = 'n17' OR json.meta.name IN ('n3', 'none')", [3, 17]),
        ("caption_length BETWEEN 5 AND 8 -- a comment", [5, 6, 7, 8]),
        ("grey AND shard = '2.tar'", [20, 22, 24, 26, 28]),
        ("key LIKE '%7' AND width = 6 AND height < 5 AND format = 'png' AND orientation = 1", [7, 17, 27, 37]),
        ("txt.size = 12 AND png.size = bytes AND label IS NULL", [12]),
        ("caption_length > (SELECT avg(caption_length) FROM samples)", [n for n in ALL if n > 19.5]),
        ("samples.caption_length < 2", [0, 1]),
        ("bytes = 1 OR TRUE", list(ALL)),
    ],
)
def test_a_condition_selects_what_it_says(scored, tmp_path, where, expected):
    assert chosen(scored, str(tmp_path), where) == expected


def test_the_first_of_images_with_the_same_bytes_is_kept(scored, tmp_path):
    assert chosen(scored, str(tmp_path), deduplicate="crc") == list(range(30))
    assert chosen(scored, str(tmp_path), "caption_length >= 5", deduplicate="crc") == list(range(5, 35))


def test_the_first_of_images_that_look_alike_is_kept(tmp_path):
    index = write_scored(tmp_path, ("phash",))
    hashes = [value for n in range(SHARDS) for value in index.columns(n).column("phash").to_pylist()]
    expected = [number for number, value in enumerate(hashes) if value not in hashes[:number]]
    assert chosen(index, f"{tmp_path}/out", deduplicate="phash") == expected
    assert len(expected) < len(ALL)


def test_images_without_a_perceptual_hash_are_no_duplicates(tmp_path):
    write_members(tmp_path / "0.tar", [("0.png", png(0)[:60]), ("1.png", png(1)), ("2.png", png(2)[:60])])
    index_shards(str(tmp_path), f"{tmp_path}/index")
    index = Index.open(str(tmp_path))
    with pytest.raises(
        DataError, match=r"has no perceptual hashes; add them with: python -m jobs.index .* --columns phash"
    ):
        chosen(index, f"{tmp_path}/out", deduplicate="phash")
    write_scored(tmp_path, ("phash",))
    assert len(chosen(Index.open(str(tmp_path)), f"{tmp_path}/out", "phash IS NULL OR TRUE")) == len(ALL)


def test_a_sample_is_chosen_by_the_hash_of_its_key(scored, tmp_path):
    def place(purpose: str, number: int) -> int:
        return int.from_bytes(hashlib.md5(f"{purpose}/{number:04d}".encode()).digest()[8:], "little")

    assert chosen(scored, str(tmp_path), sample=7) == sorted(sorted(ALL, key=lambda n: place("sample", n))[:7])
    held_out, rest = select(scored, str(tmp_path), Wanted(), [("validation", 0.25), ("train", 0.75)]).made[:2]
    validation, train = (keys(Index.open(scored.url, made.url)) for made in (held_out, rest))
    assert validation == [n for n in ALL if place("split", n) < 0.25 * 2**64]
    assert sorted(validation + train) == list(ALL)
    assert 0 < len(validation) < 20


def test_a_split_is_stable_when_shards_are_added(tmp_path):
    index = write_scored(tmp_path / "set")
    select(index, f"{tmp_path}/a", Wanted(), [("validation", 0.3)])
    before = keys(Index.open(index.url, f"{tmp_path}/a/validation"))
    write_members(tmp_path / "set" / "00.tar", [(f"{n:04d}.png", png(n)) for n in range(40, 80)])
    index_shards(index.url, f"{index.url}/index")
    select(Index.open(index.url), f"{tmp_path}/a", Wanted(), [("validation", 0.3)])
    after = keys(Index.open(index.url, f"{tmp_path}/a/validation"))
    assert [number for number in sorted(after) if number < 40] == before


def test_columns_that_a_job_derived_are_joined_by_key(scored, tmp_path):
    location = Storage(f"{tmp_path}/bound")
    for shard in (0, 1, 3):  # not of shard 2; in another order, and without sample 0
        numbers = [n for n in range(10 * shard + 9, 10 * shard - 1, -1) if n]
        nats = [float(n) for n in numbers]
        write_columns(location, f"{shard}.tar", pa.table({"key": [f"{n:04d}" for n in numbers], "bound.nats": nats}))
    done = select(scored, f"{tmp_path}/out", Wanted("bound.nats < 3"), derived=[location.url])
    assert keys(Index.open(scored.url, f"{tmp_path}/out")) == [1, 2]
    assert done.missing == {location.url: 11}
    assert chosen(scored, f"{tmp_path}/out", "bound.nats IS NULL", derived=[location.url]) == [0, *range(20, 30)]
    with pytest.raises(DataError, match="no columns of any shard of"):
        chosen(scored, f"{tmp_path}/out", derived=[f"{tmp_path}/other"])
    with pytest.raises(DataError, match=r"columns bound.nats are in two places"):
        chosen(scored, f"{tmp_path}/out", derived=[location.url, f"{tmp_path}/./bound"])


def test_complete_columns_of_another_set_are_refused(scored, tmp_path):
    location = Storage(str(tmp_path / "bound"))
    write_columns(location, "0.tar", pa.table({"key": ["0003"], "bound.nats": [1.0]}))
    for complete, of, refused in (
        (True, "another", True),
        (False, "another", False),
        (True, scored.fingerprint, False),
    ):
        location.write("encoding.json", json.dumps({"set": of, "complete": complete}).encode())
        if refused:
            with pytest.raises(DataError, match="holds columns of other images than"):
                chosen(scored, f"{tmp_path}/out", "bound.nats = 1", derived=[location.url])
        else:
            assert chosen(scored, f"{tmp_path}/out", "bound.nats = 1", derived=[location.url]) == [3]


def test_a_selection_is_an_index_that_is_trained_on_exactly_once(scored, tmp_path):
    expected = chosen(scored, str(tmp_path), "json.score > 0.45 AND grey")
    index = Index.open(scored.url, str(tmp_path))
    assert (index.images, index.channels, index.quarantined) == (len(expected), 1, 0)
    config = DataConfig(shards=scored.url, index=str(tmp_path), workers=0, window=4, streams=2)
    seen = []
    with training_batches(config, index, seed=1, batch=4) as batches:
        for batch in itertools.islice(batches, 3 * len(expected) // 4):
            seen += [int.from_bytes(image.numpy().reshape(-1)[:4].tobytes(), "little") for image in batch.images]
    assert sorted(seen) == sorted(3 * [number % 30 for number in expected])
    assert all(not verify_shard(index, number).bad for number in range(len(index)))


def test_the_fingerprint_is_of_the_selected_samples(scored, tmp_path):
    prints = []
    for number, where in enumerate(("caption_length < 8", "key < '0008'", "caption_length < 9")):
        select(scored, f"{tmp_path}/{number}", Wanted(where))
        prints.append(Index.open(scored.url, f"{tmp_path}/{number}").fingerprint)
    assert prints[0] == prints[1] != prints[2]
    assert scored.fingerprint not in prints


def test_selections_are_made_of_selections(scored, tmp_path):
    select(scored, f"{tmp_path}/a", Wanted("json.score > 0.45"))
    first = Index.open(scored.url, f"{tmp_path}/a")
    assert chosen(first, f"{tmp_path}/b", "json.score < 0.65") == [5, 6, 15, 16, 25, 26, 35, 36]
    with pytest.raises(DataError, match="is the index that is selected from"):
        select(first, f"{tmp_path}/a", Wanted())


def test_other_indexes_are_not_overwritten(scored, tmp_path):
    write_scored(tmp_path / "other")
    with pytest.raises(DataError, match="holds an index that is no selection"):
        select(scored, f"{tmp_path}/other/index", Wanted())
    select(scored, f"{tmp_path}/a", Wanted("grey"))
    with pytest.raises(DataError, match=r"is a selection \(of .*: where grey\): update the index that it is of"):
        index_shards(scored.url, f"{tmp_path}/a")
    with pytest.raises(DataError, match=r"is an index, not a folder of shards: name it with data.index"):
        Index.open(f"{tmp_path}/a")


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("width >", "syntax error"),
        ("colour = 1", r'Referenced column "colour" not found.*; columns: key, shard, width, height, format'),
        ("json.Foo = 1", r"index has no column json.Foo; add it with: python -m jobs.index .* --columns json.Foo$"),
        ("json.score.x = 1", r"; columns: .*json.score"),
        ("width = 'wide'", "Could not convert string 'wide' to INT32"),
        ("1; DROP TABLE samples", "error"),
        ("key IN (SELECT content FROM read_text('/etc/passwd'))", "file system operations are disabled"),
        ("width = 1", r"nothing is selected \(of 40 images 0 match, 0 are left\)"),
    ],
)
def test_what_is_no_condition_is_an_error_in_one_line(scored, tmp_path, where, message):
    with pytest.raises(DataError, match=message) as caught:
        select(scored, str(tmp_path), Wanted(where))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "splits",
    [
        [("a", 0.0)],
        [("a", 0.6), ("b", 0.6)],
        [("a", 0.5), ("a", 0.5)],
        [("", 0.5)],
        [("x/y", 0.5)],
        [("a", float("nan"))],
    ],
)
def test_impossible_splits_are_refused(scored, tmp_path, splits):
    with pytest.raises(DataError, match=r"shares of a split|names of a split"):
        select(scored, str(tmp_path), Wanted(), splits)


def test_without_duckdb_one_line_says_so(scored, tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *arguments):
        if name == "duckdb":
            raise ImportError(name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DataError, match="selecting needs DuckDB: pip install duckdb"):
        select(scored, str(tmp_path), Wanted("width = 6"))


def test_reading_more_than_is_selected_is_measured(tmp_path):
    noise = np.random.default_rng(0)
    members = [
        member
        for n in range(200)
        for member in ((f"{n:04d}.png", png(n)), (f"{n:04d}.bin", noise.bytes(100 if n % 20 else 40_000)))
    ]
    write_members(tmp_path / "0.tar", members)
    index_shards(str(tmp_path), f"{tmp_path}/index")
    index = Index.open(str(tmp_path))
    all_of_it, few, near = (
        select(index, f"{tmp_path}/{number}", Wanted(where)).made[0].excess
        for number, where in enumerate(("TRUE", "bin.size = 100 AND key LIKE '%9'", "key < '0020'"))
    )
    assert all_of_it < 1.05
    assert near < 1.05
    assert few > 1.5
    read = Index.open(index.url, f"{tmp_path}/1").shard(0).read_bytes
    assert read < index.shard(0).bytes == index.shard(0).read_bytes
