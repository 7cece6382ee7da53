"""Decoders accept the listed formats, check images against the set's format, and never unpickle."""

from __future__ import annotations

import io
import pickle
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image
from simplejpeg import decode_jpeg

from datasets.errors import DataError
from datasets.images.decode import Format, decode_file, decode_image, decode_label, has_alpha, read_header
from datasets.images.kinds import MAX_PIXELS

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
    assert read_header(data, extension)[:3] == format.shape


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
        (b"", "png", "does not decode .empty"),
        (encoded(noise(5, 7, 1), "BMP"), "png", "does not decode .its bytes are bmp; supported: png, jpeg, webp"),
        (b" <!DOCTYPE html><title>404</title>", "jpg", "does not decode .HTML or XML, not an image"),
        (bytes(100), "jpg", "does not decode .not an image format that is read"),
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


@pytest.mark.parametrize("extension", ["png", "jpg", "jpeg", "webp", "npy"])
def test_the_bytes_decide_and_not_the_extension(extension):
    image = noise(5, 7, 3)
    for data in (encoded(image, "PNG"), encoded(image, "WEBP", lossless=True), npy(image)):
        assert np.array_equal(decode_image(data, extension, COLOUR), image)
        assert read_header(data, extension)[:3] == (5, 7, 3)
    flat = np.full((5, 7, 3), 90, dtype=np.uint8)
    assert np.array_equal(decode_image(encoded(flat, "JPEG"), extension, COLOUR), flat)


def deep_jpeg() -> bytes:
    """A JPEG whose frame header has 12 bits per channel."""
    data = bytearray(encoded(noise(5, 7, 1), "JPEG"))
    data[data.index(b"\xff\xc0") + 4] = 12
    return bytes(data)


def deep_colour_png() -> bytes:
    """A PNG of 16 bits per channel in colour, which Pillow opens as 8-bit RGB."""
    rows = b"".join(b"\0" + noise(7, 3, 2)[y].tobytes() * 7 for y in range(5))
    header = struct.pack(">IIBBBBB", 7, 5, 16, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    parts = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


DEEP = {
    "grey PNG": ("png", encoded(np.arange(35, dtype=np.uint16).reshape(5, 7) * 1800, "PNG"), 16),
    "colour PNG": ("png", deep_colour_png(), 16),
    "JPEG": ("jpg", deep_jpeg(), 12),
}


@pytest.mark.parametrize("case", DEEP)
def test_more_than_eight_bits_are_refused_when_indexed_and_when_decoded(case):
    extension, data, bits = DEEP[case]
    message = rf"has {bits} bits per channel \({2**bits:,} levels\); only 8 bits"
    with pytest.raises(DataError, match=message):
        read_header(data, extension)
    for format in (GREY, COLOUR):
        with pytest.raises(DataError, match=message):
            decode_image(data, extension, format)


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_arrays_of_other_types_are_refused_when_indexed(dtype):
    with pytest.raises(DataError, match=rf"the array is {np.dtype(dtype)} of shape \(5, 7\), expected uint8"):
        read_header(npy(np.zeros((5, 7), dtype)), "npy")


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_tiffs_of_more_than_eight_bits_are_refused(dtype):
    with pytest.raises(DataError, match="bits per channel"):
        decode_file(encoded(np.ones((5, 7), dtype), "TIFF"))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF"])
def test_files_of_a_person_decode_from_more_formats(kind):
    image = noise(5, 7, 1) if kind == "GIF" else noise(5, 7, 3)
    decoded = decode_file(encoded(image, kind))
    assert np.array_equal(decoded, np.repeat(image, decoded.shape[2] // image.shape[2], axis=2))


def transparent(mode: str) -> tuple[bytes, np.ndarray]:
    """A PNG whose left half is opaque, value 40, and whose right half hides other values; how it looks on white."""
    channels = 1 if mode == "LA" else 3
    pixels = np.full((4, 6, channels + 1), 40, np.uint8)
    pixels[:, :, -1] = 255
    pixels[:, 3:, :-1], pixels[:, 3:, -1] = 200, 0
    looks = np.where(pixels[:, :, -1:] == 255, pixels[:, :, :-1], 255)
    picture = Image.fromarray(pixels)
    stream = io.BytesIO()
    (picture.quantize(4) if mode == "P" else picture).save(stream, "PNG")
    return stream.getvalue(), looks.astype(np.uint8)


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P"])
def test_hidden_colours_are_composited_on_white(mode):
    data, looks = transparent(mode)
    assert Image.open(io.BytesIO(data)).mode == mode
    assert read_header(data, "png")[:3] == looks.shape
    assert has_alpha(data)
    assert np.array_equal(decode_image(data, "png", Format(looks.shape[2], 4, 6)), looks)
    with pytest.raises(DataError, match="has transparent pixels; levels below 256"):
        decode_image(transparent("LA")[0], "png", Format(1, 4, 6, levels=17))


def test_partial_transparency_is_mixed_with_white_and_an_opaque_alpha_channel_changes_nothing():
    image = noise(5, 7, 4)
    over = image[:, :, :3] * (image[:, :, 3:] / 255) + 255 - image[:, :, 3:].astype(float)
    assert np.abs(decode_image(encoded(image, "PNG"), "png", COLOUR) - over).max() <= 1
    image[:, :, 3] = 255
    assert not has_alpha(encoded(image, "PNG"))
    assert np.array_equal(decode_image(encoded(image, "PNG"), "png", COLOUR), image[:, :, :3])


def remarked() -> dict[str, bytes]:
    """JPEGs on which libjpeg warns and which every viewer shows."""
    plain = encoded(np.kron(noise(5, 7, 3), np.ones((8, 8, 1), np.uint8)), "JPEG", quality=95)
    tables = plain.index(b"\xff\xdb")
    version = bytearray(plain)
    version[version.index(b"JFIF\0") + 5] = 7
    adobe = b"\xff\xee\x00\x0eAdobe\0\x64\0\0\0\0\x09"
    return {
        "bytes before a marker": plain[:tables] + b"\0\0\0" + plain[tables:],
        "an unknown JFIF revision": bytes(version),
        "an unknown Adobe transform": plain[:2] + adobe + plain[tables:],
    }


@pytest.mark.parametrize("case", remarked())
def test_jpegs_with_remarks_decode_as_pillow_decodes_them(case):
    data = remarked()[case]
    with pytest.raises(ValueError, match=r"."):
        decode_jpeg(data, "RGB")  # the fast decoder refuses it
    theirs = np.asarray(Image.open(io.BytesIO(data)))
    assert np.array_equal(decode_image(data, "jpg", Format(3, 40, 56)), theirs)
    assert read_header(data, "jpg")[:3] == (40, 56, 3)


def test_a_truncated_jpeg_is_refused_by_both_decoders():
    data = encoded(noise(64, 64, 3), "JPEG")
    with pytest.raises(DataError, match="does not decode"):
        decode_image(data[: len(data) // 2], "jpg", Format(3, 64, 64))


SHORT_OF_MEMORY = """
import resource, sys
from datasets.images.decode import Format, decode_image
data = sys.stdin.buffer.read()
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (32 << 20),) * 2)
decode_image(data, sys.argv[1], Format(3, 6000, 6000))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits its address space")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "progressive JPEG", "WebP"])
def test_a_lack_of_memory_is_not_the_image_being_corrupt(kind):
    """Pillow says "could not create decoder object" or "broken data stream" for it."""
    data = io.BytesIO()
    format, extension = kind.split()[-1], {"JPEG": "jpg"}.get(kind.split()[-1], kind.lower())
    Image.new("RGB", (6000, 6000)).save(data, format, progressive=kind.startswith("progressive"))
    ran = subprocess.run(
        [sys.executable, "-c", SHORT_OF_MEMORY, extension], input=data.getvalue(), capture_output=True, check=False
    )
    assert b"MemoryError" in ran.stderr.strip().splitlines()[-1]


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
        read_header(bomb.getvalue(), "png")
    header = npy(np.zeros((1, 1), dtype=np.uint8)).replace(b"(1, 1), }        ", b"(99999, 99999), }")
    with pytest.raises(DataError, match="99999"):
        decode_image(header, "npy", Format(1, 99999, 99999))


@pytest.mark.parametrize(("text", "label"), [(b"7", 7), (b" 12\n", 12), (b"000", 0)])
def test_labels_are_ascii_digits(text, label):
    assert decode_label(memoryview(text), 13) == label


@pytest.mark.parametrize("text", [b"", b"cat", b"1.5", b"-2", "٣".encode(), b"\xff"])
def test_other_labels_are_refused(text):
    with pytest.raises(DataError, match="is not a non-negative integer"):
        decode_label(text)


def test_a_label_outside_the_classes_is_refused():
    with pytest.raises(DataError, match=r"label 10 is outside the 10 classes 0\.\.9"):
        decode_label(b"10", 10)
