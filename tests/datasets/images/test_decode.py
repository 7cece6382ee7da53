"""Decoders accept the listed formats, check images against the set's format, and never unpickle."""

from __future__ import annotations

import io
import pickle

import numpy as np
import pytest
from PIL import Image

from datasets.errors import DataError
from datasets.images.decode import MAX_PIXELS, Format, decode_image, decode_label, image_size

GREY, COLOUR = Format(1, 5, 7), Format(3, 5, 7)


def encoded(array: np.ndarray, format: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image = Image.fromarray(array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array)
    image.save(stream, format, **options)
    return stream.getvalue()


def npy(array: np.ndarray, **options: bool) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("format", [GREY, COLOUR])
@pytest.mark.parametrize("extension", ["png", "webp", "npy"])
def test_lossless_images_round_trip(format, extension):
    if extension == "webp" and format == GREY:
        pytest.skip("WebP has no grey images")
    image = noise(*format.shape)
    data = npy(image) if extension == "npy" else encoded(image, extension.upper(), lossless=True)
    assert np.array_equal(decode_image(memoryview(data), extension, format), image)
    assert image_size(data, extension) == format.shape


@pytest.mark.parametrize("extension", ["jpg", "jpeg"])
@pytest.mark.parametrize("format", [GREY, COLOUR])
def test_jpeg_is_close_to_the_original(extension, format):
    image = np.repeat(noise(1, 1, format.channels), 5, 0).repeat(7, 1)
    assert np.abs(decode_image(encoded(image, "JPEG"), extension, format).astype(int) - image).max() < 4


def test_grey_converts_to_colour_but_colour_to_grey_is_refused():
    image = noise(5, 7, 1)
    assert np.array_equal(decode_image(encoded(image, "PNG"), "png", COLOUR), np.repeat(image, 3, axis=2))
    with pytest.raises(DataError, match=r"in colour \(RGB\), but the set is grey"):
        decode_image(encoded(noise(5, 7, 3), "PNG"), "png", GREY)


@pytest.mark.parametrize(("levels", "values"), [(2, 2), (17, 17), (256, 256)])
def test_levels_are_stored_as_pixel_values(levels, values):
    image = (np.arange(35).reshape(5, 7, 1) % values).astype(np.uint8)
    assert np.array_equal(decode_image(encoded(image, "PNG"), "png", GREY._replace(levels=levels)), image)


def test_a_pixel_value_beyond_the_levels_is_refused():
    with pytest.raises(DataError, match="pixel value 17; a set with 17 levels"):
        decode_image(encoded(np.full((5, 7, 1), 17, dtype=np.uint8), "PNG"), "png", GREY._replace(levels=17))


def test_one_bit_images_are_levels_0_and_1_or_black_and_white():
    bits = noise(5, 7) > 127
    data = encoded(bits, "PNG")
    assert np.array_equal(decode_image(data, "png", GREY._replace(levels=2))[:, :, 0], bits.astype(np.uint8))
    assert np.array_equal(decode_image(data, "png", GREY)[:, :, 0], bits.astype(np.uint8) * 255)


@pytest.mark.parametrize(
    ("data", "extension", "message"),
    [
        (encoded(noise(7, 5, 1), "PNG"), "png", "the image is 5 x 7 with 1 channel, expected 7 x 5 with 1 channel"),
        (encoded(noise(5, 7, 1), "PNG")[:60], "png", "does not decode"),
        (b"", "png", "does not decode"),
        (encoded(noise(5, 7, 1), "PNG"), "jpg", "does not decode"),
        (encoded(noise(5, 7, 1), "BMP"), "png", "does not decode"),
        (encoded(noise(5, 7, 1), "PNG"), "gif", "'gif' is not an image format; supported: png"),
        (npy(noise(5, 8, 1)), "npy", "is 8 x 5 with 1 channel, expected 7 x 5"),
        (npy(np.zeros((5, 7, 1))), "npy", "float64 of shape"),
        (npy(noise(5, 7, 1))[:-3], "npy", "has 32 bytes"),
        (npy(np.array([{}], dtype=object), allow_pickle=True), "npy", "object of shape"),
        (b"\x93NUMPY\x01\x00\xff\xff", "npy", "does not decode"),
    ],
)
def test_errors_of_wrong_images_are_one_line(data, extension, message):
    with pytest.raises(DataError, match=message) as error:
        decode_image(data, extension, GREY)
    assert "\n" not in str(error.value)
    assert "0x" not in str(error.value)


class Trap:
    def __reduce__(self):
        return print, ("unpickled",)


@pytest.mark.parametrize("extension", ["pyd", "pickle", "pth", "npy", "png"])
def test_nothing_is_unpickled(extension, capsys):
    for data in (pickle.dumps(Trap()), npy(np.array([Trap()], dtype=object), allow_pickle=True)):
        with pytest.raises(DataError):
            decode_image(data, extension, GREY)
    assert capsys.readouterr().out == ""


def test_decompression_bombs_are_refused_by_their_header():
    side = int(MAX_PIXELS**0.5) + 1
    bomb = io.BytesIO()
    Image.new("1", (side, side)).save(bomb, "PNG")
    assert len(bomb.getvalue()) < 100_000
    with pytest.raises(DataError, match="the limit is 67108864 pixels"):
        image_size(bomb.getvalue(), "png")
    header = npy(np.zeros((1, 1), dtype=np.uint8)).replace(b"(1, 1), }        ", b"(99999, 99999), }")
    with pytest.raises(DataError, match="99999"):
        decode_image(header, "npy", Format(1, 99999, 99999))


@pytest.mark.parametrize(("text", "label"), [(b"7", 7), (b" 12\n", 12), (b"000", 0)])
def test_labels_are_ascii_digits(text, label):
    assert decode_label(memoryview(text), 13) == label


@pytest.mark.parametrize("text", [b"", b"cat", b"1.5", b"-2", "٣".encode(), b"\xff", b"9" * 40])
def test_other_labels_are_refused(text):
    with pytest.raises(DataError, match="is not a non-negative integer"):
        decode_label(text)


def test_a_label_outside_the_classes_is_refused():
    with pytest.raises(DataError, match=r"label 10 is outside the 10 classes 0\.\.9"):
        decode_label(b"10", 10)
