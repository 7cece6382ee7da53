"""Decode images and labels from the bytes of tar members. Only the formats listed here; nothing is ever unpickled."""

from __future__ import annotations

import io
import math
import re
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image
from simplejpeg import decode_jpeg, decode_jpeg_header

from datasets.errors import DataError

Pixels = NDArray[np.uint8]

IMAGE_FORMATS = {"png": ["PNG"], "jpg": ["JPEG"], "jpeg": ["JPEG"], "webp": ["WEBP"], "npy": []}
LABEL = "cls"
LABEL_BYTES = 32  # only these bytes of a label are parsed
MAX_PIXELS = 1 << 26  # per image, 8192 x 8192: a limit against decompression bombs
_MODES = {1: "L", 3: "RGB"}
_GREY = ("1", "L", "I;16", "I;16B", "I")  # Pillow's modes with one channel
_MAX_NPY_HEADER = 1 << 12  # bytes

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


def decode_image(data: bytes | memoryview, extension: str, format: Format, out: Pixels | None = None) -> Pixels:
    """Decode an image to uint8 [H, W, C], upright (EXIF orientation applied), with values below `format.levels`.

    Any size is accepted if `format.height` is 0. 16-bit images keep their upper 8 bits; alpha is dropped. `out`
    (contiguous, of the format's shape) is filled and returned if the decoder can write into it; otherwise the result
    is a new array. Raises `DataError` (without shard and key, which the caller knows) if `data` is not an image of
    the format.
    """
    decoder = _DECODERS.get(extension, _decode_picture)
    try:
        image = decoder(data, extension, format, out)
    except DataError:
        raise
    except Exception as error:  # decoders raise all kinds of exceptions on crafted bytes
        raise _undecodable(error) from error
    if image.ndim == 2:
        image = image[:, :, None]
    if image.shape != format.shape and (format.height or image.shape[2] != format.channels):
        raise DataError(f"the image is {describe(*image.shape)}, expected {describe(*format.shape)}")
    if format.levels < 256 and image.max() >= format.levels:
        raise DataError(f"pixel value {image.max()}; a set with {format.levels} levels has values below that")
    return image


def image_size(data: bytes | memoryview, extension: str) -> tuple[int, int, int]:
    """(height, width, channels) of the upright image, from its header where possible. Raises `DataError`."""
    if extension == "npy":
        shape = _npy_header(io.BytesIO(data))[0]
        if len(shape) not in (2, 3):
            raise DataError(f"the array has {len(shape)} axes, expected [height, width] or [height, width, channels]")
        return shape[0], shape[1], shape[2] if len(shape) == 3 else 1
    try:
        picture = _open(data, extension)
        if extension == "png" and any(name in bytes(data) for name in _PNG_METADATA):
            picture.load()  # Pillow reads chunks that follow the pixels only then
        width, height = picture.size
        if _orientation(picture) in (5, 6, 7, 8):
            width, height = height, width
    except DataError:
        raise
    except Exception as error:
        raise _undecodable(error) from error
    return height, width, 1 if picture.mode in _GREY else 3


def decode_label(data: bytes | memoryview, classes: int | None = None) -> int:
    """The class from the ASCII digits of a .cls member, below `classes` if given. Raises `DataError`."""
    text = bytes(data[:LABEL_BYTES]).strip()
    if not text.isdigit() or len(text) > 18:
        raise DataError(f"label {text.decode('ascii', 'replace')!r} is not a non-negative integer")
    label = int(text)
    if classes is not None and label >= classes:
        raise DataError(f"label {label} is outside the {classes} classes 0..{classes - 1}")
    return label


def describe(height: int, width: int, channels: int = 1, *more: int) -> str:
    """A shape for an error message: width x height and the number of channels."""
    return f"{width} x {height} with {channels} channel{'s' * (channels != 1)}"


def _decode_jpeg(data: bytes | memoryview, extension: str, format: Format, out: Pixels | None) -> Pixels:
    """Decode by libjpeg-turbo directly: the same pixels as Pillow's, faster. Unusual JPEGs are left to Pillow."""
    height, width, colours, _ = decode_jpeg_header(data)
    grey = colours == "Gray"
    if _may_be_rotated(data) or colours in ("CMYK", "YCCK") or grey != (format.channels == 1):
        return _decode_picture(data, extension, format, out)
    _check_size(width, height, format)
    image = decode_jpeg(data, "GRAY" if grey else "RGB", buffer=out)
    return image if out is None else out


def _may_be_rotated(data: bytes | memoryview) -> bool:
    """Whether a JPEG has EXIF or an XMP orientation in any segment before its scan, or segments that do not parse."""
    place = 2
    while place + 4 <= len(data):
        if data[place] != 0xFF:
            return True
        marker = data[place + 1]
        if marker == 0xFF:  # a fill byte
            place += 1
            continue
        if marker in (0xDA, 0xD9):  # start of scan, end of image
            return False
        start, place = place + 4, place + 2 + (data[place + 2] << 8 | data[place + 3])
        if marker == 0xE1:  # APP1
            segment = bytes(data[start:place])
            if segment.startswith(b"Exif") or b"tiff:Orientation" in segment:
                return True
    return False


def _decode_picture(data: bytes | memoryview, extension: str, format: Format, out: Pixels | None) -> Pixels:
    picture = _open(data, extension)
    width, height = picture.size
    if format.height and {width, height} != {format.width, format.height}:
        _check_size(width, height, format)
    picture.load()
    if (transpose := _TRANSPOSE.get(_orientation(picture))) is not None:
        picture = picture.transpose(transpose)
    if picture.mode == "1" and format.levels == 2:
        return np.asarray(picture).astype(np.uint8)
    if picture.mode != _MODES[format.channels]:
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
    """The picture with the format's channels."""
    if format.channels == 1 and picture.mode not in _GREY:
        raise DataError(f"the image is in colour ({picture.mode}), but the set is grey (1 channel)")
    if format.levels < 256 and picture.mode != "L":
        raise DataError(f"the image is {picture.mode}; levels below 256 are stored as the values of a grey PNG")
    if picture.mode.startswith("I"):
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    return picture.convert(_MODES[format.channels])


def _open(data: bytes | memoryview, extension: str) -> Image.Image:
    try:
        formats = IMAGE_FORMATS[extension]
    except KeyError:
        raise DataError(f"{extension!r} is not an image format; supported: {', '.join(IMAGE_FORMATS)}") from None
    picture = Image.open(io.BytesIO(data), formats=formats)
    _check_size(picture.width, picture.height, Format(3, 0, 0))
    return picture


def _undecodable(error: Exception) -> DataError:
    reason = re.sub(r"\s+|<.*>", " ", str(error)).strip()[:120]
    return DataError(f"the image does not decode ({reason or type(error).__name__})")


def _npy_header(stream: io.BytesIO) -> tuple[tuple[int, ...], np.dtype[Any]]:
    try:
        version = np.lib.format.read_magic(stream)
        if version != (1, 0):
            raise DataError(f"the array has .npy version {version}, expected 1.0")
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream, max_header_size=_MAX_NPY_HEADER)
    except DataError:
        raise
    except Exception as error:
        raise _undecodable(error) from error
    return shape, dtype


def _decode_npy(data: bytes | memoryview, extension: str, format: Format, out: Pixels | None) -> Pixels:
    stream = io.BytesIO(data)
    shape, dtype = _npy_header(stream)
    if dtype != np.uint8 or len(shape) not in (2, 3):
        raise DataError(f"the array is {dtype} of shape {shape}, expected uint8 [height, width, channels]")
    if math.prod(shape) != len(data) - stream.tell():  # checked before memory is allocated
        raise DataError(f"the array of shape {shape} has {len(data) - stream.tell()} bytes")
    stream.seek(0)
    array: Pixels = np.lib.format.read_array(stream, allow_pickle=False, max_header_size=_MAX_NPY_HEADER)
    return array


_DECODERS = {"npy": _decode_npy, "jpg": _decode_jpeg, "jpeg": _decode_jpeg}
