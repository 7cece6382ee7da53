"""Encode a set: every sample once, in shards named like its own; nothing of another encoder or set is mixed in."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset

from cluster.storage.storage import Storage
from datasets.encoding.encode import encode_set
from datasets.encoding.encoder import EncoderName, SetName, hash_of, open_encoder
from datasets.encoding.write import EncodeJob, encode_shard
from datasets.errors import DataError
from datasets.shards.column_tables import read_columns
from datasets.shards.encoded import EncodedShards, read_record
from datasets.shards.index import Index
from datasets.shards.indexing import index_shards
from tests.datasets.conditions.captioned_sets import members_of, write_captioned
from tests.datasets.encoding.encoders import sequence_of, vector_of
from tests.datasets.small_sets import write_set

ENCODERS = "tests.datasets.encoding.encoders"
COUNTS = (9, 1, 14, 6)


@pytest.fixture
def given(tmp_path) -> Path:
    write_set(tmp_path / "set", COUNTS)
    return tmp_path / "set"


def job_of(given: Path, out: Path, function: str = "Numbers", **changes) -> EncodeJob:
    options = tuple(changes.pop("options", {}).items())
    open_encoder.cache_clear()  # the set may have changed since
    name, of = EncoderName(f"{ENCODERS}:{function}", options), SetName(str(given), "")
    encoder, _ = open_encoder(name, of)
    settings = {"batch": 4, "dtype": "float32", "skip_bad": False} | changes
    return EncodeJob(of, str(out), name, hash_of(name, encoder), **settings)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_every_sample_has_its_results_under_its_key(given, tmp_path):
    done = encode_set(job_of(given, tmp_path / "out"))
    assert (done.shards, done.encoded, done.samples, done.bad) == (4, 4, sum(COUNTS), [])
    assert done.fields == {"clip": "array", "score": "scalar", "words": "array"}
    seen = {}
    for path in sorted((tmp_path / "out").glob("*.tar")):  # as anybody reads it
        for sample in webdataset.WebDataset(str(path), shardshuffle=False):
            seen[int(sample["__key__"])] = {name: np.load(io.BytesIO(sample[name])) for name in sample if "npy" in name}
    assert list(seen) == list(range(sum(COUNTS)))
    for number, values in seen.items():
        assert values["words.npy"].tolist() == sequence_of(number).tolist()
        assert ("clip.npy" in values) == (number % 7 != 6)
        assert number % 7 == 6 or values["clip.npy"].tolist() == vector_of(number).tolist()
    scores = read_columns(Storage(str(tmp_path / "out")), "0002.tar")
    assert dict(zip(*(scores.column(name).to_pylist() for name in ("key", "score")), strict=True)) == {
        f"{number:06d}": number / 10 for number in range(10, 24)
    }


def test_an_interrupted_job_continues_and_ends_with_the_same_bytes(given, tmp_path):
    encode_set(job_of(given, tmp_path / "whole"))

    class StoppedError(Exception):
        pass

    def two(call, items):
        for item in items[:2]:
            yield call(item)
        raise StoppedError

    with pytest.raises(StoppedError):
        encode_set(job_of(given, tmp_path / "out"), two)
    with pytest.raises(DataError, match="has not ended; run it again"):
        EncodedShards(str(tmp_path / "out"))
    before = (tmp_path / "out" / "0000.tar").stat().st_mtime_ns
    done = encode_set(job_of(given, tmp_path / "out"))
    assert (done.shards, done.encoded) == (4, 2)
    assert (tmp_path / "out" / "0000.tar").stat().st_mtime_ns == before
    whole, continued = files(tmp_path / "whole"), files(tmp_path / "out")
    assert whole.keys() == continued.keys()
    etags = ("members/", "shards.arrow")  # these record the time at which a tar was written
    assert all(whole[name] == continued[name] for name in whole if not name.startswith(etags))
    assert encode_set(job_of(given, tmp_path / "out")).encoded == 0
    assert files(tmp_path / "out") == continued


@pytest.mark.parametrize("damage", ["tar", "columns", "members", "truncated"])
def test_what_is_damaged_is_encoded_again(given, tmp_path, damage):
    out = tmp_path / "out"
    encode_set(job_of(given, out))
    whole = {name: data for name, data in files(out).items() if name.endswith(".tar")}
    path = {"columns": out / "columns" / "0001.tar.arrow", "members": out / "members" / "0001.tar.arrow"}
    hit = path.get(damage, out / "0001.tar")
    hit.write_bytes(hit.read_bytes()[: -200 if damage == "truncated" else 0])
    done = encode_set(job_of(given, out))
    assert done.encoded == 1
    assert {name: data for name, data in files(out).items() if name.endswith(".tar")} == whole


def test_a_grown_set_is_encoded_where_it_is_new(given, tmp_path):
    encode_set(job_of(given, tmp_path / "out"))
    write_set(given, (*COUNTS, 3))
    done = encode_set(job_of(given, tmp_path / "out"))
    assert (done.shards, done.encoded, done.samples) == (5, 1, sum(COUNTS) + 3)


def test_shards_that_left_the_set_are_deleted(given, tmp_path):
    encode_set(job_of(given, tmp_path / "out"))
    (given / "0001.tar").unlink()
    index_shards(str(given), str(given / "index"))
    encode_set(job_of(given, tmp_path / "out"))
    assert [path for path in files(tmp_path / "out") if "0001" in path] == []
    assert EncodedShards(str(tmp_path / "out")).table.num_rows == 3


def test_others_results_are_refused_in_one_line(given, tmp_path):
    encode_set(job_of(given, tmp_path / "out"))
    cases = {
        "was made by another encoder .*Numbers, hash": job_of(given, tmp_path / "out", options={"scale": "2"}),
        "was made with --dtype float32, now int8": job_of(given, tmp_path / "out", dtype="int8"),
        "was made with --batch 4, now 5": job_of(given, tmp_path / "out", batch=5),
    }
    for message, job in cases.items():
        open_encoder.cache_clear()
        with pytest.raises(DataError, match=message) as error:
            encode_set(job)
        assert "\n" not in str(error.value)
    write_set(tmp_path / "other", (5, 5))
    with pytest.raises(DataError, match="was made of another set"):
        encode_set(job_of(tmp_path / "other", tmp_path / "out"))
    with pytest.raises(DataError, match=r"holds 0000.tar, which is not encoded shards"):
        encode_set(job_of(given, tmp_path / "other"))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("few", "0000.tar: the encoder made 3 values of clip from 4 samples"),
        ("name", "'Clip!': fields are named by"),
        ("mixed", "000001': clip is a number for some samples and an array for others"),
        ("nan", "000000': clip: not all of its numbers are finite"),
        ("large", "clip: 100000 is too large for float16"),
        ("text", "clip: <U1 is not a type of numbers"),
    ],
)
def test_results_that_cannot_be_stored_are_refused_by_shard_and_key(given, tmp_path, how, message):
    with pytest.raises(DataError, match=message):
        encode_set(job_of(given, tmp_path / "out", "Wrong", options={"how": how}, dtype="float16"))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nothing", (), "not MODULE:FUNCTION"),
        ("no_such_module:f", (), "No module named 'no_such_module'; it is looked for here"),
        (f"{ENCODERS}:missing", (), "has no function missing"),
        (f"{ENCODERS}:not_callable", (), "has no function not_callable"),
        (f"{ENCODERS}:Numbers", (("size", "3"),), "unexpected keyword argument 'size'; options are given by --option"),
        (f"{ENCODERS}:vector_of", (("number", 3),), "returned ndarray, which cannot be called"),
    ],
)
def test_a_name_without_an_encoder_is_refused_in_one_line(given, name, options, message):
    with pytest.raises(DataError, match=message):
        open_encoder(EncoderName(name, options), SetName(str(given), ""))


def test_a_corrupt_sample_ends_the_job_or_is_left_out(given, tmp_path):
    path = given / "0002.tar"
    with tarfile.open(path) as tar:
        at = tar.getmember("000012.png").offset_data + 20
    data = bytearray(path.read_bytes())
    data[at] ^= 255
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"0002.tar: sample '000012': .*; --on-bad skip leaves such samples out"):
        encode_set(job_of(given, tmp_path / "out"))
    done = encode_set(job_of(given, tmp_path / "out", skip_bad=True))
    assert done.samples == sum(COUNTS) - 1
    assert [(shard, key) for shard, key, _ in done.bad] == [("0002.tar", "000012")]


def test_an_encoder_of_captions_reads_no_images(tmp_path):
    def members(number):
        return {} if number == 2 else members_of(number)

    write_captioned(tmp_path / "set", [4, 4], members)
    done = encode_set(job_of(tmp_path / "set", tmp_path / "out", "Lengths"))
    assert (done.samples, done.bytes, done.fields) == (8, 0, {"length": "scalar"})
    assert not list((tmp_path / "out").glob("*.tar"))
    found = read_columns(Storage(str(tmp_path / "out")), "00000.tar").column("length").to_pylist()
    assert found == [len(members_of(number)["txt"]) if number != 2 else None for number in range(4)]


def test_a_shard_that_two_processes_write_is_as_if_one_had(given, tmp_path):
    job = job_of(given, tmp_path / "out")
    encode_set(job)
    before = {name: data for name, data in files(tmp_path / "out").items() if name.endswith(".tar")}
    encode_shard(job, 2)
    done = encode_set(job)
    assert done.encoded == 0
    assert {name: data for name, data in files(tmp_path / "out").items() if name.endswith(".tar")} == before
    _, record = read_record(Storage(str(tmp_path / "out")), "0002.tar")
    assert record.shard.source_crc32 == Index.open(str(given)).shard(2).crc32
