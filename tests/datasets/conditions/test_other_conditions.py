"""Vectors, classes and the geometry of crops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from datasets.conditions.sequences import decode_sequence
from datasets.conditions.vectors import decode_vector
from datasets.config import DataConfig
from datasets.errors import DataError
from datasets.loading.build import training_batches
from tests.datasets.conditions.captioned_sets import members_of, npy, write_captioned
from tests.datasets.small_sets import HEIGHT, WIDTH, number_of


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    def members(number):
        return {} if number == 2 else members_of(number)

    return write_captioned(tmp_path_factory.mktemp("set"), [16], members, label=True)


def batch_of(index, conditions, **settings):
    config = DataConfig(
        shards=index.url, conditions=conditions, **{"streams": 1, "window": 16, "cache": 0, "workers": 0} | settings
    )
    with training_batches(config, index, seed=5, batch=16) as batches:
        return next(batches), batches.unknown


@pytest.mark.parametrize("settings", [{}, {"workers": 1}, {"cache": 1 << 20}])
def test_vectors_and_classes_lie_beside_their_images(index, settings):
    conditions = {"clip": {"kind": "vector", "member": "clip.npy", "size": 3}, "kind": {"kind": "class"}}
    batch, unknown = batch_of(index, conditions, **settings)
    numbers = [number_of(image[0].numpy()) for image in batch.images]
    expected = [[0, 0, 0] if number == 2 else [number, number + 1, number + 2] for number in numbers]
    assert batch.conditions["clip"].tolist() == expected
    assert batch.conditions["clip"].dtype == torch.float32
    assert batch.conditions["kind"].tolist() == [number % 10 for number in numbers]
    assert unknown == {"clip/missing": 1}


def sequence_of(number):
    """float32 [number % 4, 2]; the third image has none."""
    return np.full((number % 4, 2), number / 2, np.float32) + np.arange(number % 4, dtype=np.float32)[:, None]


@pytest.mark.parametrize("settings", [{}, {"workers": 1}, {"cache": 1 << 20}])
def test_sequences_are_padded_and_cut(tmp_path, settings):
    def members(number):
        return {} if number == 2 else {"t5.npy": npy(sequence_of(number))}

    written = write_captioned(tmp_path, [16], members)
    given = {"caption": {"kind": "sequence", "member": "t5.npy", "size": 2, "max_tokens": 2}}
    batch, unknown = batch_of(written, given, **settings)
    vectors, lengths = batch.conditions["caption"]
    assert (vectors.dtype, vectors.shape) == (torch.float16, (16, 2, 2))
    for image, found, length in zip(batch.images, vectors, lengths.tolist(), strict=True):
        number = number_of(image[0].numpy())
        expected = sequence_of(number)[:2] if number != 2 else []
        assert length == len(expected)
        assert found[:length].tolist() == [list(row) for row in expected]
        assert not found[length:].any()
    assert unknown == {"caption/missing": 1, "caption/empty": 4, "caption/truncated": 4}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"no file", "not a .npy"),
        (npy(np.zeros(2, np.float32)), "float32 of 2, expected floats of T x 2"),
        (npy(np.zeros((4, 3), np.float16)), "float16 of 4 x 3, expected floats of T x 2"),
        (npy(np.zeros((4, 2), np.int64)), "int64 of 4 x 2"),
        (npy(np.full((1, 2), 1e5, np.float32)), "not all of its numbers are finite in float16"),
    ],
)
def test_other_bytes_are_no_sequence(data, reason):
    with pytest.raises(DataError, match=reason):
        decode_sequence(data, 2, "t5.npy")


@pytest.mark.parametrize("settings", [{}, {"cache": 1 << 20}])
def test_the_geometry_is_that_of_the_crop(index, settings):
    transform = {"size": [2, 2], "crop": "random", "scale": [1, 1]}
    batch, _ = batch_of(index, {"crop": {"kind": "geometry"}}, transform=transform, **settings)
    plain, _ = batch_of(index, {"crop": {"kind": "geometry"}}, **settings)
    assert plain.conditions["crop"].tolist() == [[HEIGHT, WIDTH, 0, 0]] * 16
    whole = {int(position): image for position, image in zip(plain.positions, plain.images, strict=True)}
    lefts = set()
    for position, (height, width, top, left) in zip(
        batch.positions.tolist(), batch.conditions["crop"].tolist(), strict=True
    ):
        assert (height, width, top) == (HEIGHT, WIDTH, 0)  # the largest square is as high as the image
        lefts.add(left)
        assert position in whole
    assert len(lefts) > 1
    assert min(lefts) >= 0
    assert max(lefts) <= WIDTH - HEIGHT


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"no file", "not a .npy"),
        (npy(np.zeros(4, np.float32)), "float32 of 4, expected 3 floats"),
        (npy(np.zeros(3, np.int64)), "int64 of 3"),
        (npy(np.array([1, np.nan, 0], np.float32)), "not all of its numbers are finite"),
        (npy(np.array([1, None, 0])), "object of shape .3,., which would have to be unpickled"),
        (npy(np.zeros(3000, np.float32)), "float32 of 3000, expected 3 floats"),
        (npy(np.zeros((2, 1), np.float32)), "float32 of 2 x 1, expected 3 floats"),
        (npy(np.zeros(3, "V4")), "V4 of 3, expected 3 floats"),
        (npy(np.zeros(3, [("scale", "<f8"), ("values", "i1")])), "expected 3 floats"),
        (npy(np.full(3, 1e300)), "not all of its numbers are finite"),
    ],
)
def test_other_bytes_are_no_vector(data, reason):
    with pytest.raises(DataError, match=reason):
        decode_vector(data, 3, "clip.npy")


def test_half_precision_is_read(index):
    assert decode_vector(npy(np.array([[0.5, 1, 2]], np.float16)), 3, "clip.npy").tolist() == [0.5, 1, 2]
