"""Arrays in .npy files: the header decides before memory is allocated, and floats return from every type."""

from __future__ import annotations

import io
import tracemalloc

import numpy as np
import pytest

from datasets.conditions.vectors import decode_vector
from datasets.errors import DataError
from datasets.images.decode import Format, decode_image
from datasets.npy import (
    FLOAT_TYPES,
    as_stored,
    decode_floats,
    decode_npy,
    encode_npy,
    floats_shape,
    read_npy_header,
)


def header(descr: str, shape: str, values: bytes = b"") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + values


LYING = [
    ("'<f4'", "(1073741824,)"),  # 4 GiB, which many machines would give
    ("'<f4'", "(1099511627776,)"),
    ("'<f4'", "(3, 1099511627776, 1099511627776)"),
    ("'|u1'", "(8192, 8192)"),
    ("[('scale', '<f4'), ('values', '|i1', (1000000000,))]", "(4,)"),
    ("'|S1000000000'", "(16,)"),
    ("'|u1'", "(-1, -1)"),
    ("'|u1'", "(True, True)"),
    ("'|O'", "(1,)"),
]


@pytest.mark.parametrize(("descr", "shape"), LYING)
def test_a_header_that_does_not_fit_its_bytes_is_refused_before_memory_is_taken(descr, shape):
    data = header(descr, shape, bytes(12))
    tracemalloc.start()
    try:
        for decode in (
            lambda: decode_vector(data, 3, "clip.npy"),
            lambda: decode_image(data, "npy", Format(1, 0, 0)),
            lambda: read_npy_header(data),
        ):
            with pytest.raises(DataError) as error:
                decode()
            assert "\n" not in str(error.value)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", FLOAT_TYPES)
@pytest.mark.parametrize("shape", [(), (5,), (3, 16), (2, 4, 4), (0, 8)])
def test_floats_return_from_every_type(kind, shape):
    values = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    data = encode_npy(as_stored(values, kind))
    found = read_npy_header(data)
    assert floats_shape(found) == shape
    back = decode_floats(data, found)
    largest = float(np.abs(values).max(initial=0))
    allowed = {"float32": 0, "float16": largest / 2**11, "bfloat16": largest / 2**8, "int8": largest / 253}[kind]
    assert back.shape == shape
    assert back.dtype == np.float32
    assert np.abs(back - values).max(initial=0) <= allowed


def test_bfloat16_is_rounded_as_torch_rounds_it():
    import torch

    values = np.random.default_rng(2).normal(size=10_000).astype(np.float32) ** 5
    stored = as_stored(values, "bfloat16")
    expected = torch.from_numpy(values).bfloat16().view(torch.int16).numpy()
    assert np.array_equal(stored.view(np.int16), expected)
    assert np.load(io.BytesIO(encode_npy(stored))).dtype == np.dtype("V2")  # numpy alone reads it


def test_the_items_of_a_sequence_have_scales_of_their_own():
    values = np.array([[1e-3, -2e-3], [100, 50], [0, 0]], np.float32)
    stored = as_stored(values, "int8")
    assert stored["values"].tolist() == [[64, -127], [127, 64], [0, 0]]
    assert stored["scale"].tolist() == pytest.approx([2e-3 / 127, 100 / 127, 0])


def test_integers_are_stored_as_they_are():
    values = np.array([1, -5, 7], np.int16)
    data = encode_npy(as_stored(values, "int8"))
    assert np.array_equal(decode_npy(data, read_npy_header(data)), values)
    assert floats_shape(read_npy_header(data)) is None


@pytest.mark.parametrize(
    ("values", "kind", "reason"),
    [
        (np.array([1, np.nan]), "float32", "not all of its numbers are finite"),
        (np.array([1e39]), "bfloat16", "not all of its numbers are finite"),
        (np.array([7e4]), "float16", "70000 is too large for float16"),
        (np.array(["a"]), "float32", "not a type of numbers"),
    ],
)
def test_what_a_type_cannot_hold_is_refused(values, kind, reason):
    with pytest.raises(ValueError, match=reason):
        as_stored(values, kind)
