"""How an image is written into a shard: the bytes of its file where they can be kept, else encoded anew."""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np
from PIL import Image

from datasets.config import TransformConfig
from datasets.errors import DataError
from datasets.images.decode import Format, Pixels, decode_file, has_alpha
from datasets.images.kinds import kind_of
from datasets.images.transform import Transform
from datasets.packing.sources.source import Example

_KEPT = {"png": "png", "jpeg": "jpg", "webp": "webp", "npy": "npy"}  # extensions of the kinds that shards may have
_LOSSY = ("jpg", "webp")


class Encoding(NamedTuple):
    """The size and format of the images."""

    size: tuple[int, int] | None = None  # (height, width): resize to cover it and crop the centre
    extension: str | None = (
        None  # png, jpg or webp; None: files unchanged, arrays as png (npy if neither grey nor colour)
    )
    quality: int = 90  # of jpg and webp


class Encoded(NamedTuple):
    """An encoded image."""

    data: bytes
    extension: str
    transparent: bool  # some pixel of the file was, and is composited on white


def encode_example(example: Example, how: Encoding = Encoding(), levels: int = 256) -> Encoded:  # noqa: B008  (immutable)
    """Encode an image, which is decoded in any case. Raises `DataError` if it does not decode."""
    image = example.image
    kind, transparent = "png", False
    if isinstance(image, bytes):
        data, kind = image, kind_of(image)
        transparent = has_alpha(data)
        image = decode_file(data)
        if not transparent and how.size is None and kind in _KEPT and how.extension in (None, _KEPT[kind]):
            return Encoded(data, _KEPT[kind], False)
    if how.size is not None and image.shape[:2] != how.size:
        height, width, channels = image.shape
        format = Format(channels, height, width, levels)
        image = Transform(TransformConfig(size=how.size), format, None)(image, 0)
    kept = _KEPT[kind] if kind in ("jpeg", "webp") and not transparent else "png"
    if image.shape[2] not in (1, 3):
        kept = "npy"
    extension = how.extension or kept
    return Encoded(encode(image, extension, how.quality), extension, transparent)


def check_encoding(how: Encoding, levels: int, height: int, width: int) -> None:
    """Raise `DataError` if images of `levels` levels cannot be written so."""
    if levels < 256 and how.extension in _LOSSY:
        raise DataError(
            f"--encoding {how.extension} does not keep {levels} levels, which are stored as values: use png"
        )
    if levels == 2 and how.size not in (None, (height, width)):
        raise DataError("--size: binary images cannot be resized: values between 0 and 1 do not exist")


def encode_png(image: Pixels) -> bytes:
    """Encode an image, uint8 [H, W, C] with one or three channels, as PNG; levels are stored as pixel values."""
    return encode(image, "png")


def encode(image: Pixels, extension: str, quality: int = 90) -> bytes:
    """Encode an image, uint8 [H, W, C], as PNG (levels as pixel values), JPEG or WebP if it has one or three channels,
    or as the array itself (npy).
    """
    formats = {"png": "PNG", "jpg": "JPEG", "jpeg": "JPEG", "webp": "WEBP"}
    stream = io.BytesIO()
    if extension == "npy":
        np.save(stream, np.ascontiguousarray(image))
        return stream.getvalue()
    if extension not in formats:
        raise DataError(f"images cannot be written as {extension!r}; supported: {', '.join(formats)}")
    if image.shape[2] not in (1, 3):
        raise DataError(f"an image of {image.shape[2]} channels cannot be written as {extension}, only 1 or 3")
    picture = Image.fromarray(np.ascontiguousarray(image[:, :, 0] if image.shape[2] == 1 else image))
    picture.save(stream, formats[extension], **({} if extension == "png" else {"quality": quality}))
    return stream.getvalue()
