"""Decode images and labels from the bytes of tar members or files.

Only the formats listed here; nothing is ever unpickled. The bytes decide which format an image has, not its extension.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image
from simplejpeg import decode_jpeg, decode_jpeg_header

from datasets.errors import DataError
from datasets.images.kinds import (
    FILE_KINDS,
    MAX_PIXELS,
    PICTURE_KINDS,
    PROGRESSIVE,
    START_OF_SCAN,
    check_jpeg,
    jpeg_segments,
    kind_of,
    not_an_image,
    refuse_depth,
)
from datasets.npy import NpyHeader, decode_npy, read_npy_header

Pixels = NDArray[np.uint8]

IMAGE_FORMATS = ("png", "jpg", "jpeg", "webp", "npy")  # extensions of the images in shards
BACKGROUND = "white"  # transparent pixels are composited on it
LABEL = "cls"
LABEL_BYTES = 32  # only these bytes of a label are parsed
MAX_CLASSES = 1 << 20  # a larger label would become an embedding of as many rows
_MODES = {1: "L", 3: "RGB"}
_GREY = ("1", "L", "LA")  # Pillow's modes with one channel
_DEEP = {"I;16": 16, "I;16L": 16, "I;16B": 16, "I;16N": 16, "I": 32, "F": 32}  # bits of Pillow's other grey modes
_PNG_DEPTH = 24  # offset of the bit depth in a PNG
_TIFF_DEPTH = 258  # tag
_DECODER_MEMORY = 16 << 20  # bytes besides those for pixels

# Where Pillow keeps EXIF and XMP, and the names of the PNG chunks (which may follow the pixels) that hold them.
_METADATA = frozenset({"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"})
_PNG_METADATA = (b"eXIf", b"XML:com.adobe.xmp", b"Raw profile type exif")
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # by EXIF orientation


class ImageHeader(NamedTuple):
    """What the header of an encoded image says."""

    height: int  # of the upright image, pixels
    width: int
    channels: int  # 1 or 3; of an npy as in its shape
    format: str  # jpeg, png, webp or npy, by its bytes
    orientation: int = 1  # EXIF orientation, 1 to 8, that has to be undone; 1: upright


class Format(NamedTuple):
    """Shape of every image of a set, number of levels L (pixel values 0..L-1) and of classes (0: no labels)."""

    channels: int
    height: int
    width: int
    levels: int = 256
    classes: int = 0

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels), the layout of decoded images."""
        return self.height, self.width, self.channels

    @property
    def bytes(self) -> int:
        """Bytes of one decoded image."""
        return self.channels * self.height * self.width


def decode_image(
    data: bytes | memoryview,
    extension: str,
    format: Format,
    out: Pixels | None = None,
    least: tuple[int, int] | None = None,
) -> Pixels:
    """Decode an image to uint8 [H, W, C], upright (EXIF orientation applied), with values below `format.levels`.

    Any size is accepted if `format.height` is 0. Transparent pixels are composited on white. `out` (contiguous, of the
    format's shape) is filled and returned if the decoder can write into it; otherwise the result is a new array. With
    `least` (height, width) a JPEG may be reduced by its decoder, to no less than that: see `decode_reduced`. Raises
    `DataError` (without shard and key, which the caller knows) if `data` is not an image of the format, or has more
    than 8 bits per channel.
    """
    _check_extension(extension)
    try:
        image = _decode(data, format, out, least)
    except (DataError, MemoryError):
        raise
    except Exception as error:  # decoders raise all kinds of exceptions on crafted bytes
        _check_memory(len(data), format.height * format.width)
        raise _undecodable(error) from error
    if image.ndim == 2:
        image = image[:, :, None]
    sized = format.height and least is None  # else `_check_size` has seen the size
    if image.shape != format.shape and (sized or image.shape[2] != format.channels):
        raise DataError(f"the image is {describe(*image.shape)}, expected {describe(*format.shape)}")
    if format.levels < 256 and image.max() >= format.levels:
        raise DataError(f"pixel value {image.max()}; a set with {format.levels} levels has values below that")
    return image


def decode_reduced(
    data: bytes | memoryview,
    extension: str,
    format: Format,
    least: Callable[[int, int], tuple[int, int] | None],
) -> tuple[Pixels, tuple[int, int]]:
    """Decode an image that is to be resized: a JPEG at a reduced scale where that is enough.

    `least(height, width)` is the size to which an image of this size may be reduced; None: not at all. Returns the
    pixels and the image's own (height, width). libjpeg leaves out the high frequencies of each block (its scaled
    inverse DCT), which is antialiased and takes a fraction of the time. Raises `DataError` like `decode_image`.
    """
    if kind_of(data) == "jpeg":
        height, width, *_ = read_header(data, extension)
        if (wanted := least(height, width)) is not None and 2 * wanted[0] <= height and 2 * wanted[1] <= width:
            return decode_image(data, extension, format, least=wanted), (height, width)
    image = decode_image(data, extension, format)
    return image, (image.shape[0], image.shape[1])


def decode_file(data: bytes) -> Pixels:
    """Decode a file of any of `FILE_KINDS`, as `decode_image` does; of several frames the first. Raises `DataError`."""
    try:
        picture = _open(data, FILE_KINDS)
        return _pixels(picture, Format(1 if picture.mode in _GREY else 3, 0, 0))
    except (DataError, MemoryError):
        raise
    except Exception as error:
        raise _undecodable(error) from error


def has_alpha(data: bytes) -> bool:
    """Whether some pixel of a file of `FILE_KINDS` is transparent. Decodes it if it has an alpha channel."""
    if kind_of(data) not in FILE_KINDS:
        return False
    try:
        picture = _open(data, FILE_KINDS)
        return picture.has_transparency_data and _least_alpha(picture) < 255
    except (DataError, MemoryError):
        raise
    except Exception as error:
        raise _undecodable(error) from error


def read_header(data: bytes | memoryview, extension: str) -> ImageHeader:
    """Size, channels, format and orientation of an encoded image, from its header where possible.

    Raises `DataError`, also for more than 8 bits per channel.
    """
    _check_extension(extension)
    if kind_of(data) == "npy":
        shape = _npy_header(data).shape
        return ImageHeader(shape[0], shape[1], shape[2] if len(shape) == 3 else 1, "npy")
    try:
        picture = _open(data, PICTURE_KINDS)
        if picture.format == "PNG" and any(name in bytes(data) for name in _PNG_METADATA):
            picture.load()  # Pillow reads chunks that follow the pixels only then
        width, height = picture.size
        orientation = _orientation(picture)
        if orientation in (5, 6, 7, 8):
            width, height = height, width
    except (DataError, MemoryError):
        raise
    except Exception as error:
        _check_memory(len(data), 0)
        raise _undecodable(error) from error
    turned = int(orientation) if orientation in _TRANSPOSE else 1
    return ImageHeader(height, width, 1 if picture.mode in _GREY else 3, str(picture.format).lower(), turned)


def decode_label(data: bytes | memoryview, classes: int | None = None) -> int:
    """The class from the ASCII digits of a .cls member, below `classes` if given. Raises `DataError`."""
    text = bytes(data[:LABEL_BYTES]).strip()
    if not text.isdigit():
        raise DataError(f"label {text.decode('ascii', 'replace')!r} is not a non-negative integer")
    label = int(text)
    if label >= MAX_CLASSES:
        raise DataError(f"label {label}; the limit is {MAX_CLASSES - 1}")
    if classes is not None and label >= classes:
        raise DataError(f"label {label} is outside the {classes} classes 0..{classes - 1}")
    return label


def describe(height: int, width: int, channels: int = 1, *more: int) -> str:
    """A shape for an error message: width x height and the number of channels."""
    return f"{width} x {height} with {channels} channel{'s' * (channels != 1)}"


def _decode(data: bytes | memoryview, format: Format, out: Pixels | None, least: tuple[int, int] | None) -> Pixels:
    kind = kind_of(data)
    if kind == "npy":
        return _decode_npy(data)
    if kind == "jpeg":
        try:
            image = _decode_jpeg(data, format, out, least or (0, 0))
        except ValueError as error:  # libjpeg remarks on bytes that Pillow may still decode
            if isinstance(error, DataError):
                raise
            image = None
        if image is not None:
            return image
    return _pixels(_open(data, PICTURE_KINDS, format), format, least)


def _decode_jpeg(data: bytes | memoryview, format: Format, out: Pixels | None, least: tuple[int, int]) -> Pixels | None:
    """Decode by libjpeg-turbo directly: the same pixels as Pillow's, faster. None for JPEGs that need Pillow."""
    height, width, colours, _ = decode_jpeg_header(data)
    grey = colours == "Gray"
    if _needs_pillow(data) or colours in ("CMYK", "YCCK") or grey != (format.channels == 1):
        return None
    _check_size(width, height, format)
    image = decode_jpeg(data, "GRAY" if grey else "RGB", min_height=least[0], min_width=least[1], buffer=out)
    return image if out is None else out


def _needs_pillow(data: bytes | memoryview) -> bool:
    """Whether a JPEG has EXIF or an XMP orientation in any segment before its scan, or segments that do not parse.

    Raises `DataError` if it has too many scans.
    """
    for marker, start, stop in jpeg_segments(data):
        if not marker:
            return True
        if marker == 0xE1:  # APP1
            segment = bytes(data[start:stop])
            if segment.startswith(b"Exif") or b"tiff:Orientation" in segment:
                return True
        if marker in PROGRESSIVE or (marker == START_OF_SCAN and start < len(data) and data[start] < 3):
            check_jpeg(data)  # it may have several scans
    return False


def _pixels(picture: Image.Image, format: Format, least: tuple[int, int] | None = None) -> Pixels:
    """The upright, opaque pixels of an opened picture, with the format's channels; of a JPEG reduced to no less than
    `least` (height, width).
    """
    if least is not None and picture.format == "JPEG":
        height, width = reversed(least) if _orientation(picture) in (5, 6, 7, 8) else least
        picture.draft(None, (width, height))
    picture.load()
    if (transpose := _TRANSPOSE.get(_orientation(picture))) is not None:
        picture = picture.transpose(transpose)
    if picture.mode == "1" and format.levels == 2 and not picture.has_transparency_data:
        return np.asarray(picture).astype(np.uint8)
    if picture.mode != _MODES[format.channels] or picture.has_transparency_data:
        picture = _convert(picture, format)
    values = np.frombuffer(picture.tobytes(), dtype=np.uint8)  # faster than np.asarray(picture)
    return values.reshape(picture.height, picture.width, format.channels)


def _orientation(picture: Image.Image) -> Any:
    """The EXIF orientation, 1 to 8, as Pillow's `exif_transpose` finds it (EXIF first, then XMP).

    1 (upright) if there is none or the metadata cannot be parsed: viewers do the same. A PNG has to be loaded first.
    """
    if _METADATA.isdisjoint(picture.info):
        return 1
    try:
        return Image.Image.getexif(picture).get(ExifTags.Base.Orientation, 1)
    except Exception:  # a truncated or crafted EXIF segment
        return 1


def _check_size(width: int, height: int, format: Format) -> None:
    """Refuse an image by its header, before any pixel is decoded."""
    if width * height > MAX_PIXELS:
        raise DataError(f"the image is {width} x {height}; the limit is {MAX_PIXELS} pixels")
    if format.height and (width, height) != (format.width, format.height):
        raise DataError(f"the image is {width} x {height}, expected {format.width} x {format.height}")


def _convert(picture: Image.Image, format: Format) -> Image.Image:
    """The picture with the format's channels, its transparent pixels composited on the background."""
    if format.channels == 1 and picture.mode not in _GREY:
        raise DataError(f"the image is in colour ({picture.mode}), but the set is grey (1 channel)")
    if format.levels < 256:
        found = "has transparent pixels" if picture.has_transparency_data else f"is {picture.mode}"
        raise DataError(f"the image {found}; levels below 256 are stored as the values of an opaque grey PNG")
    if picture.has_transparency_data:
        canvas = Image.new("RGBA", picture.size, BACKGROUND)
        canvas.alpha_composite(picture.convert("RGBA"))
        picture = canvas
    return picture.convert(_MODES[format.channels])


def _least_alpha(picture: Image.Image) -> int:
    least, _ = picture.convert("RGBA").getchannel("A").getextrema()
    return int(least)  # type: ignore[arg-type]  # of one band of bytes


def _check_extension(extension: str) -> None:
    if extension not in IMAGE_FORMATS:
        raise DataError(f"{extension!r} is not an image format; supported: {', '.join(IMAGE_FORMATS)}")


def _open(data: bytes | memoryview, kinds: tuple[str, ...], format: Format | None = None) -> Image.Image:
    """Open a picture of one of `kinds` without decoding it; its size, if a format is given, and depth are checked."""
    kind = kind_of(data)
    if kind not in kinds:
        found = f"its bytes are {kind}; supported: {', '.join(kinds)}" if kind else not_an_image(data)
        raise DataError(f"the image does not decode ({found})")
    if kind == "jpeg":
        check_jpeg(data)
    picture = Image.open(io.BytesIO(data), formats=[kind])
    _check_depth(picture, data)
    width, height = picture.size
    unlike = format is not None and format.height and {width, height} != {format.width, format.height}
    _check_size(width, height, format if format and unlike else Format(3, 0, 0))
    return picture


def _check_depth(picture: Image.Image, data: bytes | memoryview) -> None:
    """Refuse more than 8 bits per channel: Pillow reduces some of them to 8 without a warning."""
    bits = _DEEP.get(picture.mode, 8)
    if picture.format == "PNG":
        bits = data[_PNG_DEPTH]
    elif picture.format == "TIFF":
        bits = max(picture.tag_v2.get(_TIFF_DEPTH, (1,)))  # type: ignore[attr-defined]
    if bits > 8:
        raise refuse_depth(bits)


def _check_memory(size: int, pixels: int) -> None:
    """Raise MemoryError if a decoder may have failed for want of memory: not all of them say so, and the image is good.

    `size`: encoded, in bytes.
    """
    needed = _DECODER_MEMORY + 16 * pixels + 4 * size  # progressive JPEG: 9 bytes a pixel, WebP: about 8
    np.empty(needed, dtype=np.uint8)  # reserved, not touched


def _undecodable(error: Exception) -> DataError:
    reason = re.sub(r"\s+|<.*>", " ", str(error)).strip()[:120]
    return DataError(f"the image does not decode ({reason or type(error).__name__})")


def _npy_header(data: bytes | memoryview) -> NpyHeader:
    """The header of an array of pixels; compared with its bytes before memory is allocated."""
    try:
        header = read_npy_header(data)
    except DataError as error:
        raise _undecodable(error) from error
    shape, dtype = header.shape, header.dtype
    if dtype != np.uint8 or len(shape) not in (2, 3):
        raise DataError(f"the array is {dtype} of shape {shape}, expected uint8 [height, width, channels]")
    if min(shape) < 1:
        raise DataError(f"the array has shape {shape}; lengths are positive integers")
    _check_size(shape[1], shape[0], Format(3, 0, 0))
    return header


def _decode_npy(data: bytes | memoryview) -> Pixels:
    return decode_npy(data, _npy_header(data))
