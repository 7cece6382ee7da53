"""From the bytes of a member to an image or a label, by an allow-list of formats: nothing is ever unpickled."""

from __future__ import annotations

import io
import math
import re
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps
from simplejpeg import decode_jpeg, decode_jpeg_header

from datasets.errors import DataError

Pixels = NDArray[np.uint8]

IMAGE_FORMATS = {"png": ["PNG"], "jpg": ["JPEG"], "jpeg": ["JPEG"], "webp": ["WEBP"], "npy": []}
LABEL = "cls"
LABEL_BYTES = 32  # of a label that are looked at
_MODES = {1: "L", 3: "RGB"}
_GREY = ("1", "L", "I;16", "I;16B", "I")  # Pillow's modes of one channel
_EXIF_BEFORE = 1 << 12  # bytes of a JPEG in which the EXIF segment begins, if there is one
_LARGEST_HEADER = 1 << 12  # bytes of an .npy header
MAX_PIXELS = 1 << 26  # of one image: 8192 x 8192, against decompression bombs


class Format(NamedTuple):
    """What every image of a set is: its shape, its number of levels L (values 0..L-1) and of classes (0: no labels)."""

    channels: int
    height: int
    width: int
    levels: int = 256
    classes: int = 0

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels), as images are decoded."""
        return self.height, self.width, self.channels

    @property
    def bytes(self) -> int:
        """Bytes of one decoded image."""
        return self.channels * self.height * self.width


_ANY = Format(3, 0, 0)


def decode_image(data: bytes | memoryview, extension: str, format: Format, out: Pixels | None = None) -> Pixels:
    """The image, uint8 [H, W, C], upright (EXIF), with values below `format.levels`; of any size if height is 0.

    `out`, contiguous and of the format's shape, is written where the decoder can do without memory of its own, and is
    then what is returned. Of 16 bits the upper 8 are taken, of an alpha channel nothing. Raises `DataError` (a line
    without the place, which the caller knows) if it is not an image of the format.
    """
    with_decoder = _DECODERS.get(extension, _decode_picture)
    try:
        image = with_decoder(data, extension, format, out)
    except DataError:
        raise
    except Exception as error:  # decoders raise all kinds on bytes made for it
        raise _undecodable(error) from error
    if image.ndim == 2:
        image = image[:, :, None]
    if image.shape != format.shape and (format.height or image.shape[2] != format.channels):
        raise DataError(f"the image is {describe(*image.shape)}, not {describe(*format.shape)}")
    if format.levels < 256 and image.max() >= format.levels:
        raise DataError(f"a pixel has the value {image.max()}; with {format.levels} levels it must be below that")
    return image


def image_size(data: bytes | memoryview, extension: str) -> tuple[int, int, int]:
    """(height, width, channels) of an image from its header alone, upright. Raises `DataError`."""
    if extension == "npy":
        shape = _npy_header(io.BytesIO(data))[0]
        if len(shape) not in (2, 3):
            raise DataError(f"the array has {len(shape)} axes, not [height, width] or [height, width, channels]")
        return shape[0], shape[1], shape[2] if len(shape) == 3 else 1
    try:
        picture = _open(data, extension)
        width, height = _upright_size(picture)
    except DataError:
        raise
    except Exception as error:
        raise _undecodable(error) from error
    return height, width, 1 if picture.mode in _GREY else 3


def decode_label(data: bytes | memoryview, classes: int | None = None) -> int:
    """The class of an image from the ASCII digits of a .cls member, below `classes` if told. Raises `DataError`."""
    text = bytes(data[:LABEL_BYTES]).strip()
    if not text.isdigit() or len(text) > 18:
        raise DataError(f"the label {text.decode('ascii', 'replace')!r} is not a whole number")
    label = int(text)
    if classes is not None and label >= classes:
        raise DataError(f"the label {label} is outside the {classes} classes 0..{classes - 1}")
    return label


def describe(height: int, width: int, channels: int = 1, *more: int) -> str:
    """A shape in words."""
    return f"{width} x {height} with {channels} channel{'s' * (channels != 1)}"


def _decode_jpeg(data: bytes | memoryview, extension: str, format: Format, out: Pixels | None) -> Pixels:
    """The same pixels as Pillow's, by libjpeg-turbo without Pillow's detours; Pillow where a JPEG is out of the way."""
    height, width, colours, _ = decode_jpeg_header(data)
    grey = colours == "Gray"
    if b"Exif" in bytes(data[:_EXIF_BEFORE]) or colours in ("CMYK", "YCCK") or grey != (format.channels == 1):
        return _decode_picture(data, extension, format, out)
    _check_size(width, height, format)
    image = decode_jpeg(data, "GRAY" if grey else "RGB", buffer=out)
    return image if out is None else out


def _decode_picture(data: bytes | memoryview, extension: str, format: Format, out: Pixels | None) -> Pixels:
    picture = _open(data, extension)
    _check_size(*_upright_size(picture), format)
    if "exif" in picture.info:
        picture = ImageOps.exif_transpose(picture)
    if picture.mode == "1" and format.levels == 2:
        return np.asarray(picture).astype(np.uint8)
    if picture.mode != _MODES[format.channels]:
        picture = _converted(picture, format)
    values = np.frombuffer(picture.tobytes(), dtype=np.uint8)  # np.asarray takes a longer way to the same
    return values.reshape(picture.height, picture.width, format.channels)


def _check_size(width: int, height: int, format: Format) -> None:
    """Before a pixel is decoded."""
    if width * height > MAX_PIXELS:
        raise DataError(f"the image is {width} x {height}; more than {MAX_PIXELS} pixels are refused")
    if format.height and (width, height) != (format.width, format.height):
        raise DataError(f"the image is {width} x {height}, not {format.width} x {format.height}")


def _upright_size(picture: Image.Image) -> tuple[int, int]:
    """(width, height) after the turn that EXIF asks for."""
    turned = "exif" in picture.info and picture.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    return (picture.height, picture.width) if turned else picture.size


def _converted(picture: Image.Image, format: Format) -> Image.Image:
    """The picture with the format's channels."""
    if format.channels == 1 and picture.mode not in _GREY:
        raise DataError(f"the image is in colour ({picture.mode}), but the set is grey: 1 channel")
    if format.levels < 256 and picture.mode != "L":
        raise DataError(f"the image is {picture.mode}; levels below 256 are stored as grey PNG values")
    if picture.mode.startswith("I"):
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    return picture.convert(_MODES[format.channels])


def _open(data: bytes | memoryview, extension: str) -> Image.Image:
    try:
        formats = IMAGE_FORMATS[extension]
    except KeyError:
        raise DataError(f"{extension!r} is no image format; known are {', '.join(IMAGE_FORMATS)}") from None
    picture = Image.open(io.BytesIO(data), formats=formats)
    _check_size(picture.width, picture.height, _ANY)
    return picture


def _undecodable(error: Exception) -> DataError:
    reason = re.sub(r"\s+|<.*>", " ", str(error)).strip()[:120]
    return DataError(f"the image does not decode ({reason or type(error).__name__})")


def _npy_header(stream: io.BytesIO) -> tuple[tuple[int, ...], np.dtype]:
    try:
        version = np.lib.format.read_magic(stream)
        if version != (1, 0):
            raise DataError(f"the array is of .npy version {version}, not 1.0")
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream, max_header_size=_LARGEST_HEADER)
    except DataError:
        raise
    except Exception as error:
        raise _undecodable(error) from error
    return shape, dtype


def _decode_npy(data: bytes | memoryview, extension: str, format: Format, out: Pixels | None) -> Pixels:
    stream = io.BytesIO(data)
    shape, dtype = _npy_header(stream)
    if dtype != np.uint8 or len(shape) not in (2, 3):
        raise DataError(f"the array is {dtype} with shape {shape}, not uint8 [height, width, channels]")
    if math.prod(shape) != len(data) - stream.tell():  # before memory is taken for it
        raise DataError(f"the array of shape {shape} has {len(data) - stream.tell()} bytes")
    stream.seek(0)
    return np.lib.format.read_array(stream, allow_pickle=False, max_header_size=_LARGEST_HEADER)


_DECODERS = {"npy": _decode_npy, "jpg": _decode_jpeg, "jpeg": _decode_jpeg}
