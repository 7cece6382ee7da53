"""EXIF orientation is applied wherever the metadata is, and the scan and the decoder agree on the size."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from datasets.config import DataConfig, TransformConfig
from datasets.images.decode import Format, decode_image, read_header
from datasets.loading.build import evaluation_batches
from datasets.shards.index import Index
from datasets.shards.indexing import index_shards
from tests.datasets.small_sets import write_members

HEIGHT, WIDTH = 24, 40  # stored; upright, orientations 5 to 8 are 40 high and 24 wide
IMAGE = np.kron(np.random.default_rng(0).integers(0, 256, (3, 5, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8))


def exif(orientation: int) -> bytes:
    """An EXIF segment's payload with an orientation."""
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


def saved(format: str, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(IMAGE).save(stream, format, **options)
    return stream.getvalue()


def app(number: int, payload: bytes) -> bytes:
    """A JPEG segment APPn."""
    return bytes([0xFF, 0xE0 + number]) + struct.pack(">H", len(payload) + 2) + payload


def chunk(kind: bytes, payload: bytes) -> bytes:
    """A PNG chunk."""
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))


def xmp(orientation: int) -> bytes:
    return b'<x:xmpmeta><rdf:Description tiff:Orientation="%d"/></x:xmpmeta>' % orientation


def jpeg_with(*segments: bytes) -> bytes:
    data = saved("JPEG", quality=95)
    return data[:2] + b"".join(segments) + data[2:]


def png_with(late: bytes, early: bytes = b"") -> bytes:
    data = saved("PNG")
    after_header = 8 + 25  # the signature and IHDR
    return data[:after_header] + early + data[after_header:-12] + late + data[-12:]  # IEND has 12 bytes


ORIENTED = {
    "jpeg": lambda o: ("jpg", jpeg_with(app(1, exif(o)))),
    "jpeg after 5 KB of ICC profile": lambda o: ("jpg", jpeg_with(app(2, bytes(5000)), app(1, exif(o)))),
    "jpeg after 300 KB of segments": lambda o: ("jpg", jpeg_with(*[app(2, bytes(60000))] * 5, app(1, exif(o)))),
    "jpeg after its tables": lambda o: ("jpg", after_tables(app(1, exif(o)))),
    "jpeg with fill bytes": lambda o: ("jpg", jpeg_with(app(2, bytes(5000)), b"\xff\xff\xff", app(1, exif(o)))),
    "jpeg with XMP alone": lambda o: ("jpg", jpeg_with(app(1, b"http://ns.adobe.com/xap/1.0/\0" + xmp(o)))),
    "png before the pixels": lambda o: ("png", png_with(b"", chunk(b"eXIf", exif(o)[6:]))),
    "png after the pixels": lambda o: ("png", png_with(chunk(b"eXIf", exif(o)[6:]))),
    "png with XMP after the pixels": lambda o: (
        "png",
        png_with(chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp(o))),
    ),
    "webp": lambda o: ("webp", saved("WEBP", exif=exif(o), lossless=True)),
}


def after_tables(segment: bytes) -> bytes:
    """A JPEG with a segment directly before its start of frame."""
    data = saved("JPEG", quality=95)
    frame = data.index(b"\xff\xc0")
    return data[:frame] + segment + data[frame:]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("case", ORIENTED)
def test_images_are_upright_wherever_the_orientation_is_stored(case: str, orientation: int) -> None:
    extension, data = ORIENTED[case](orientation)
    opened = Image.open(io.BytesIO(data))
    opened.load()
    upright = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    assert upright.shape == ((WIDTH, HEIGHT, 3) if orientation > 4 else (HEIGHT, WIDTH, 3))
    assert read_header(memoryview(data), extension)[:3] == upright.shape
    decoded = decode_image(memoryview(data), extension, Format(3, *upright.shape[:2]))
    assert np.array_equal(decoded, upright)


@pytest.mark.parametrize("broken", [b"Exif\0\0", b"Exif\0\0junk that is no TIFF", exif(6)[:20]])
def test_an_exif_segment_that_does_not_parse_leaves_the_image_as_stored(broken: bytes) -> None:
    data = jpeg_with(app(1, broken))
    assert read_header(data, "jpg")[:3] == (HEIGHT, WIDTH, 3)
    plain = decode_image(saved("JPEG", quality=95), "jpg", Format(3, HEIGHT, WIDTH))
    assert np.array_equal(decode_image(data, "jpg", Format(3, HEIGHT, WIDTH)), plain)


@pytest.mark.parametrize("case", ["jpeg after 5 KB of ICC profile", "png after the pixels", "webp"])
@pytest.mark.parametrize("size", [None, (20, 12), (8, 8)])
def test_rotated_images_pass_through_index_transform_and_batch(tmp_path: Path, case: str, size: object) -> None:
    extension, data = ORIENTED[case](6)
    write_members(tmp_path / "0.tar", [(f"{i}.{extension}", data) for i in range(3)])
    index_shards(str(tmp_path), str(tmp_path / "index"))
    index = Index.open(str(tmp_path))
    assert (index.height, index.width) == (WIDTH, HEIGHT)
    transform = TransformConfig(size=size) if size else None
    config = DataConfig(shards=str(tmp_path), workers=0, transform=transform)
    upright = decode_image(data, extension, index.format)
    with evaluation_batches(config, index, batch=3) as batches:
        images = next(batches).images.permute(0, 2, 3, 1).numpy()
    if size is None:
        assert all(np.array_equal(image, upright) for image in images)
    else:
        assert images.shape == (3, *size, 3)
        if size == (20, 12):  # half the size: the whole image, whose corner blocks stay recognisable
            assert np.abs(images[0, 1, 1].astype(int) - upright[2, 2]).max() < 24
