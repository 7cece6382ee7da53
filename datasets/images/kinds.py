"""The kind of an image, by its bytes and not by its name, and its number of bits."""

from __future__ import annotations

from collections.abc import Iterator

from datasets.errors import DataError

MAX_SCANS, MAX_SCANNED = 1000, 1 << 30  # scans of a JPEG, and these times its pixels: normal ones have 10
MAX_PIXELS = 1 << 26  # per image, 8192 x 8192: a limit against decompression bombs
HEAD = 32  # bytes of a file from which `kind_of` finds its kind
PICTURE_KINDS = ("png", "jpeg", "webp")  # decoded by Pillow or libjpeg-turbo; in shards, besides npy
FILE_KINDS = (*PICTURE_KINDS, "gif", "bmp", "tiff")  # read from a person's own files

_SIGNATURES = {
    b"\x89PNG\r\n\x1a\n": "png",
    b"\xff\xd8\xff": "jpeg",
    b"GIF87a": "gif",
    b"GIF89a": "gif",
    b"BM": "bmp",
    b"II*\0": "tiff",
    b"MM\0*": "tiff",
    b"II+\0": "tiff",  # BigTIFF
    b"MM\0+": "tiff",
    b"\x93NUMPY": "npy",
}
_MARKUP = (b"<!doctype", b"<html", b"<?xml", b"<svg", b"<head", b"<body")
START_OF_SCAN = 0xDA  # JPEG marker
PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})  # of a frame header
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # JPEG markers of a frame header


def kind_of(data: bytes | memoryview) -> str:
    """png, jpeg, webp, gif, bmp, tiff or npy, by the first bytes; "" if they are none of these."""
    head = bytes(data[:HEAD])
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    return next((kind for signature, kind in _SIGNATURES.items() if head.startswith(signature)), "")


def not_an_image(data: bytes | memoryview) -> str:
    """Why bytes of no known kind are not an image: "empty", "HTML or XML, not an image" or "no image format"."""
    if not data:
        return "empty"
    if bytes(data[:HEAD]).lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(_MARKUP):
        return "HTML or XML, not an image"
    return "not an image format that is read"


def refuse_depth(bits: int) -> DataError:
    """The error for an image of more than 8 bits per channel."""
    levels = f"{2**bits:,} levels" if bits <= 16 else f"{bits}-bit values"
    return DataError(
        f"the image has {bits} bits per channel ({levels}); only 8 bits (256 levels) can be trained on: convert it"
    )


def jpeg_segments(data: bytes | memoryview) -> Iterator[tuple[int, int, int]]:
    """(marker, start, stop) of each segment of a JPEG up to the header of its first scan.

    Marker 0 where the bytes do not parse.
    """
    place = 2
    while place + 4 <= len(data):
        if data[place] != 0xFF:
            yield 0, place, place
            return
        marker = data[place + 1]
        if marker == 0xFF:  # a fill byte
            place += 1
            continue
        if marker == 0xD9:  # end of image
            return
        start, place = place + 4, place + 2 + (data[place + 2] << 8 | data[place + 3])
        yield marker, start, place
        if marker == START_OF_SCAN:
            return


def check_jpeg(data: bytes | memoryview) -> None:
    """Raise `DataError` if a JPEG has more than 8 bits per channel, or scans that take minutes to decode.

    Every scan of a progressive or otherwise interleaved JPEG passes over the whole image.
    """
    width = height = components = 0
    progressive = False
    for marker, start, stop in jpeg_segments(data):
        if marker in _FRAMES and start + 6 <= len(data):
            depth, *sizes, components = data[start : start + 6]
            height, width = sizes[0] << 8 | sizes[1], sizes[2] << 8 | sizes[3]
            progressive = marker in PROGRESSIVE
            if depth > 8:
                raise refuse_depth(depth)
        elif marker == START_OF_SCAN and (progressive or (start < len(data) and data[start] < components)):
            scans = 1 + bytes(data[stop:]).count(b"\xff\xda")
            if scans > MAX_SCANS or scans * width * height > MAX_SCANNED:
                raise DataError(
                    f"the image is a JPEG of {width} x {height} pixels in {scans:,} scans, too many to decode"
                )
