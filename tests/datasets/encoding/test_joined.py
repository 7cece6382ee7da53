"""Encoded shards joined to a set: every sample has its own row, however it is read, or the lack is reported."""

from __future__ import annotations

import tarfile

import numpy as np
import pytest

from datasets.config import DataConfig
from datasets.encoding.encode import encode_set
from datasets.errors import DataError
from datasets.loading.build import evaluation_batches, training_batches
from datasets.loading.conditions import check_conditions
from datasets.packing.sources.source import Example
from datasets.packing.write import write_tar
from datasets.shards.encoded import EncodedShards
from datasets.shards.index import Index
from datasets.shards.indexing import index_shards
from tests.datasets.encoding.encoders import vector_of
from tests.datasets.encoding.test_encode import COUNTS, files, job_of
from tests.datasets.small_sets import image_of, number_of, write_set

CLIP = {"clip": {"kind": "vector", "member": "clip.npy", "size": 3}}


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    folder = tmp_path_factory.mktemp("joined")
    write_set(folder / "set", COUNTS)
    encode_set(job_of(folder / "set", folder / "out"))
    return folder


def config(folder, **settings):
    chosen = {"streams": 2, "window": 4, "cache": 0, "workers": 0} | settings
    columns = chosen.pop("columns", (f"{folder}/out",))
    return DataConfig(shards=f"{folder}/set", columns=columns, conditions=CLIP, **chosen)


def check(batch, lacking=lambda number: number % 7 == 6):
    kept = batch.weights > 0
    for image, vector in zip(batch.images[kept], batch.conditions["clip"][kept], strict=True):
        number = number_of(image[0].numpy())
        assert vector.tolist() == ([0, 0, 0] if lacking(number) else vector_of(number).tolist())


@pytest.mark.parametrize("settings", [{}, {"workers": 2}, {"cache": 1 << 20}, {"memory": 1}])
def test_each_image_comes_with_its_row(given, settings):
    data = config(given, **settings)
    index = Index.of(data)
    check_conditions(data, index)
    with training_batches(data, index, seed=3, batch=6) as batches:
        for _ in range(10):
            check(next(batches))
    assert set(batches.unknown) == {"clip/missing"}
    seen = 0
    with evaluation_batches(data, index, batch=7) as batches:
        for batch in batches:
            check(batch)
            seen += int(batch.weights.sum())
    assert seen == sum(COUNTS)
    assert batches.unknown == {"clip/missing": 4}


def test_training_and_held_out_columns_are_found_by_their_shards(given, tmp_path):
    """Both sets have shards of the same names."""
    write_set(tmp_path / "other", (4, 4))
    encode_set(job_of(tmp_path / "other", tmp_path / "other-out", options={"scale": "3"}))
    data = config(given, columns=(f"{tmp_path}/other-out", f"{given}/out"), validation=f"{tmp_path}/other")
    for index, scale in ((Index.of(data), 1), (Index.held_out(data), 3)):
        check_conditions(data, index)
        with evaluation_batches(data, index, batch=4) as batches:
            batch = next(batches)
            numbers = [number_of(image[0].numpy()) for image in batch.images]
            assert batch.conditions["clip"].tolist() == [(vector_of(number) * scale).tolist() for number in numbers]


def test_a_sample_that_lacks_its_row_is_counted_and_one_that_changed_is_refused(given, tmp_path):
    folder = tmp_path
    write_set(folder / "set", COUNTS)
    encode_set(job_of(folder / "set", folder / "out"))
    examples = [(f"{number:06d}", Example(image_of(number), number % 10)) for number in (3, 2, 1, 0, 99)]
    write_tar(folder / "set" / "0000.tar", iter(examples))  # fewer, in another order, one more
    index_shards(f"{folder}/set", f"{folder}/set/index")
    data = config(folder)
    index = Index.of(data)
    check_conditions(data, index)
    with evaluation_batches(data, index, batch=5) as batches:
        check(next(batches), lambda number: number in (6, 99))
    assert batches.unknown["clip/missing"] == 1
    examples[1] = ("000002", Example(image_of(77), 2))
    write_tar(folder / "set" / "0000.tar", iter(examples))
    index_shards(f"{folder}/set", f"{folder}/set/index")
    index = Index.of(data)
    message = "0000.tar: sample '000002' has changed since .*out was encoded; run python -m jobs.encode again"
    with pytest.raises(DataError, match=message) as error:
        check_conditions(data, index)
    assert "\n" not in str(error.value)
    with evaluation_batches(data, index, batch=5) as batches, pytest.raises(DataError, match=message):
        next(batches)


def test_what_cannot_be_joined_is_refused_in_one_line(given, tmp_path):
    with pytest.raises(DataError, match=r"no encoded shards here; python -m jobs.encode writes them"):
        Index.of(config(given, columns=(f"{given}/set",)))
    write_set(tmp_path / "set", (*COUNTS, 2))
    data = config(given).model_copy(update={"shards": f"{tmp_path}/set"})
    message = r"1 of 5 shards are not encoded, such as .*0004.tar; run python -m jobs.encode for them"
    with pytest.raises(DataError, match=message):
        check_conditions(data, Index.of(data))
    wrong = data.model_copy(
        update={
            "conditions": {
                "clip": DataConfig.model_validate(
                    {"shards": "x", "conditions": {"clip": CLIP["clip"] | {"member": "other.npy"}}}
                ).conditions["clip"]
            }
        }
    )
    with pytest.raises(DataError, match=r"no member .other.npy; they have .*clip.npy.*words.npy"):
        check_conditions(wrong, Index.of(wrong))


def test_a_damaged_row_is_quarantined_with_its_image(given, tmp_path):
    write_set(tmp_path / "set", COUNTS)
    encode_set(job_of(tmp_path / "set", tmp_path / "out"))
    path = tmp_path / "out" / "0000.tar"
    with tarfile.open(path) as tar:
        at = tar.getmember("000004.clip.npy").offset_data + 130
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    data = config(tmp_path, on_bad="quarantine", bad_share=1)
    with evaluation_batches(data, Index.of(data), batch=9) as batches:
        check(next(batches))
    assert [(entry.key, entry.reason.split(":")[0]) for entry in batches.quarantined] == [
        ("000004", "clip.npy does not match its checksum")
    ]


def test_the_fingerprint_is_of_what_is_joined(given, tmp_path):
    index = Index.of(config(given))
    assert Index.open(f"{given}/set").joins.fingerprint() == ""
    encode_set(job_of(given / "set", tmp_path / "same"))
    encode_set(job_of(given / "set", tmp_path / "other", options={"scale": "2"}))
    same, other = (Index.of(config(given, columns=(f"{tmp_path}/{name}",))) for name in ("same", "other"))
    assert index.joins.fingerprint() == same.joins.fingerprint() != other.joins.fingerprint()
    assert EncodedShards(str(tmp_path / "same")).hash != EncodedShards(str(tmp_path / "other")).hash


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
def test_all_types_of_floats_are_joined(given, tmp_path, dtype):
    encode_set(job_of(given / "set", tmp_path / "out", dtype=dtype))
    data = config(given, columns=(f"{tmp_path}/out",))
    with evaluation_batches(data, Index.of(data), batch=9) as batches:
        batch = next(batches)
    expected = np.array([vector_of(number) if number % 7 != 6 else [0, 0, 0] for number in range(9)])
    assert np.abs(batch.conditions["clip"].numpy() - expected).max() <= 8 / 253


def test_a_copy_of_everything_is_joined_as_the_original(given, tmp_path):
    for path, data in files(given).items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(data)
    here, there = Index.of(config(given)), Index.of(config(tmp_path))
    assert here.joins.fingerprint() == there.joins.fingerprint()
    with evaluation_batches(config(tmp_path), there, batch=9) as batches:
        check(next(batches))
