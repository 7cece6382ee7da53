"""Shards as they are found in the wild: by webdataset's ShardWriter, in img2dataset's layout, and by plain tar.

One sample in ten cannot be used, each for one of the reasons in `BAD`. The label of a sample is its number.
"""

from __future__ import annotations

import io
import json
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import webdataset
from PIL import Image

Members = dict[str, bytes | str]  # by extension; text: the target of a link
SHARD = 250  # samples
LAYOUTS = ("webdataset", "img2dataset", "tar")


def size_of(number: int) -> tuple[int, int]:
    """(width, height) of the image of a sample."""
    return 16 + number % 5 * 8, 16 + number % 3 * 8


def score_of(number: int) -> float:
    """The score in the .json and in the Parquet file of a sample."""
    return number % 100 / 100


def picture(number: int, format: str = "JPEG") -> bytes:
    """The image of a sample. Samples 7, 57, 107, ... have one image: duplicates."""
    width, height = size_of(7 if number % 50 == 7 else number)
    seed = 7 if number % 50 == 7 else number
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).resize((width, height)).save(stream, format)
    return stream.getvalue()


def good(number: int) -> Members:
    """The members of a sample that can be used: the extensions and formats differ."""
    kinds = (("jpg", "JPEG"), ("JPG", "JPEG"), ("png", "PNG"), ("webp", "WEBP"), ("jpeg", "PNG"))
    extension, format = kinds[0 if number % 50 == 7 else number % 5]
    return {extension: picture(number, format), **beside(number)}


def beside(number: int) -> Members:
    """The members of a sample besides its image."""
    fields = {"similarity": score_of(number), "NSFW": ("UNLIKELY", "UNSURE", "NSFW")[number % 3], "width": 1000}
    return {"txt": f"caption {number}".encode(), "json": json.dumps(fields).encode(), "cls": str(number).encode()}


def bomb(width: int, height: int, depth: int = 8) -> bytes:
    """The header of a PNG of any size."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    body = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    data = zlib.compress(bytes(4))
    idat = struct.pack(">I", len(data)) + b"IDAT" + data + struct.pack(">I", zlib.crc32(b"IDAT" + data))
    return b"\x89PNG\r\n\x1a\n" + body + idat


def npy(array: np.ndarray) -> bytes:
    """An array as the bytes of a .npy file; pickled if it is one of objects."""
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def gif() -> bytes:
    """A GIF."""
    stream = io.BytesIO()
    Image.new("L", (8, 8)).save(stream, "GIF")
    return stream.getvalue()


# What a sample of a kind has instead of a good image, or None for nothing, and its reason.
BAD: dict[str, tuple[Callable[[int], Members], str]] = {
    "no image": (lambda n: {}, "has no image among its members"),
    "only metadata": (lambda n: {"txt": b""}, "has no image among its members"),
    "empty": (lambda n: {"jpg": b""}, "empty"),
    "cut in the header": (lambda n: {"jpg": picture(n)[:30]}, "does not decode"),
    "cut PNG": (lambda n: {"png": picture(n, "PNG")[:20]}, "does not decode"),
    "cut WebP": (lambda n: {"webp": picture(n, "WEBP")[:15]}, "does not decode"),
    "HTML": (lambda n: {"jpg": b"<html>404 Not Found</html>"}, "HTML or XML"),
    "SVG": (lambda n: {"png": b"<?xml version='1.0'?><svg/>"}, "HTML or XML"),
    "GIF": (lambda n: {"jpg": gif()}, "its bytes are gif"),
    "text": (lambda n: {"jpg": b"Access denied"}, "not an image format"),
    "two images": (lambda n: {"jpg": picture(n), "png": picture(n, "PNG")}, "has 2 images"),
    "dots in the name": (lambda n: {"image.v2.jpg": picture(n)}, "a key ends at the first dot"),
    "16 bits": (lambda n: {"png": bomb(4, 4, 16)}, "16 bits per channel"),
    "decompression bomb": (lambda n: {"png": bomb(50_000, 50_000)}, "exceeds limit"),
    "floats": (lambda n: {"npy": npy(np.zeros((4, 4), np.float32))}, "expected uint8"),
    "pickle": (lambda n: {"npy": npy(np.array([{"a": 1}]))}, "expected uint8|does not decode"),
    "link": (lambda n: {"jpg": "/etc/passwd"}, "not a regular file"),
    "absurd label": (lambda n: {"jpg": picture(n), "cls": b"1000000000000000000"}, "the limit is 1048575"),
    "label of text": (lambda n: {"jpg": picture(n), "cls": b"dog"}, "not a non-negative integer"),
    "no label": (lambda n: {"jpg": picture(n), "cls": b""}, "not a non-negative integer|has no .cls"),
    "twice": (lambda n: {"jpg": picture(n)}, "is repeated"),
    "name of two images": (lambda n: {"jpg": picture(n), "jpeg": picture(n)}, "has 2 images"),
}


def layout_of(number: int) -> str:
    """How the shard of a sample is written."""
    return LAYOUTS[number // SHARD % 3]


def kind_of(number: int) -> str:
    """Why a sample cannot be used; "": it can. webdataset's writer makes no links."""
    if number % 10 != 3:
        return ""
    kind = list(BAD)[number // 10 % len(BAD)]
    return "text" if kind == "link" and layout_of(number) == "webdataset" else kind


def key_of(number: int) -> str:
    """Keys in folders with dots, and with './' as tar writes them, in some shards."""
    layout = layout_of(number)
    if layout == "img2dataset":
        return f"{number // SHARD:05d}{number % SHARD:04d}"
    return f"./v1.0/{number:08d}" if layout == "tar" else f"{number:08d}"


def members_of(number: int) -> list[Members]:
    """The members of a sample; of one that is twice in its shard, two times."""
    kind = kind_of(number)
    members = beside(number) | BAD[kind][0](number) if kind else good(number)
    if kind == "no label":
        del members["cls"]
    return [members] * (2 if kind == "twice" else 1)


def write_wild(folder: Path, images: int) -> dict[str, str]:
    """Write a set with `images` samples in shards of 250. Returns the reason of each that is bad, by key.

    The last shard is cut in its last sample.
    """
    folder.mkdir(parents=True)
    for shard in range(-(-images // SHARD)):
        numbers = range(shard * SHARD, min((shard + 1) * SHARD, images))
        path = folder / f"{shard:05d}.tar"
        match layout_of(numbers.start):
            case "webdataset":
                _write_by_webdataset(folder, shard, numbers)
            case "img2dataset":
                _write_tar(path, numbers)
                _write_parquet(path, numbers)
            case "tar":
                _write_tar(path, numbers, junk=True)
    bad = {key_of(n): BAD[kind_of(n)][1] for n in range(images) if kind_of(n)}
    data = path.read_bytes()
    last = key_of(images - 1)
    path.write_bytes(data[: data.rindex(last.encode()) + 700])
    return bad | {last: "may be incomplete"}


def _write_by_webdataset(folder: Path, shard: int, numbers: range) -> None:
    with webdataset.ShardWriter(f"{folder}/%05d.tar", start_shard=shard, encoder=False, verbose=0) as writer:
        for number in numbers:
            for members in members_of(number):
                writer.write({"__key__": key_of(number), **members})


def _write_parquet(path: Path, numbers: range) -> None:
    """img2dataset's table of a shard; every fourth row is missing."""
    rows = [n for n in numbers if n % 4]
    table = {"key": [key_of(n) for n in rows], "similarity": [score_of(n) for n in rows], "sizes": [[1]] * len(rows)}
    pq.write_table(pa.table(table), path.with_suffix(".parquet"))
    path.with_name(f"{path.stem}_stats.json").write_text("{}")


def _write_tar(path: Path, numbers: range, junk: bool = False) -> None:
    format = (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)[numbers.start // SHARD % 2]
    with tarfile.open(path, "w", format=format) as tar:
        for number in numbers:
            files = [item for members in members_of(number) for item in members.items()]
            for extension, data in files:
                info = tarfile.TarInfo(f"{key_of(number)}.{extension}")
                if isinstance(data, str):
                    info.type, info.linkname, data = tarfile.SYMTYPE, data, b""
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
            if junk and number % 7 == 0:
                for name in (f"./v1.0/._{number:08d}.jpg", "./.DS_Store"):
                    tar.addfile(tarfile.TarInfo(name), io.BytesIO())
                directory = tarfile.TarInfo("./v1.0/")
                directory.type = tarfile.DIRTYPE
                tar.addfile(directory)
