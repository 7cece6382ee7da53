"""Scan a tar for its samples: keys, offsets, sizes and checksums.

Members are grouped by key and extension with webdataset's own function. What webdataset skips silently is an error
here: truncated tars, incomplete samples, repeated or interleaved keys, links, compressed tars.
"""

from __future__ import annotations

import contextlib
import io
import re
import tarfile
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from cluster.storage.storage import Storage
from datasets.errors import DataError
from datasets.images.decode import IMAGE_FORMATS, LABEL, decode_label, image_size

_BLOCK = 512
_READ = 8 << 20  # bytes per request
_META = re.compile(r"__[^/]*__($|/)")  # names that webdataset skips


class Member(NamedTuple):
    """A file of a tar."""

    offset: int  # bytes from the beginning of the tar
    size: int  # bytes
    crc32: int


class Sample(NamedTuple):
    """The members with one key, by extension."""

    key: str
    members: dict[str, Member]

    @property
    def image(self) -> str:
        """The extension of the image."""
        return next(extension for extension in self.members if extension in IMAGE_FORMATS)


class Scan(NamedTuple):
    """The contents of a tar."""

    samples: list[Sample]
    sizes: set[tuple[int, int]]  # every (height, width) of its images
    channels: list[int]  # of each sample's image
    labels: int  # the largest label + 1; 0: no labels
    bytes: int  # of the whole tar
    etag: str


def scan_tar(storage: Storage, name: str) -> Scan:
    """Read a whole shard and list its samples. Raises `DataError`, one line that names shard and key."""
    source = RangeFile(storage, name)
    where = f"{storage.url}/{name}"
    samples: list[Sample] = []
    seen: set[str] = set()
    sizes: set[tuple[int, int]] = set()
    channels: list[int] = []
    labels = 0
    for key, extension, member, data in _members(source, where):
        if not samples or samples[-1].key != key:
            if key in seen:
                raise DataError(f"{where}: the members of {key!r} are not consecutive, or the key is repeated")
            seen.add(key)
            samples.append(Sample(key, {}))
        if extension in samples[-1].members:
            raise DataError(f"{where}: {f'{key}.{extension}'!r} is repeated")
        samples[-1].members[extension] = member
        try:
            if extension in IMAGE_FORMATS:
                height, width, count = image_size(data, extension)
                sizes.add((height, width))
                channels.append(count)
            elif extension == LABEL:
                labels = max(labels, decode_label(data) + 1)
        except DataError as error:
            raise DataError(f"{where}: {f'{key}.{extension}'!r}: {error}") from error
    _check_whole(samples, where)
    return Scan(samples, sizes, channels, labels, source.size, source.etag)


def _check_whole(samples: list[Sample], where: str) -> None:
    """Each sample has one image, and a label if any sample has one."""
    labelled = next((sample.key for sample in samples if LABEL in sample.members), None)
    for sample in samples:
        images = [extension for extension in sample.members if extension in IMAGE_FORMATS]
        if len(images) != 1:
            found = ", ".join(sample.members).encode("unicode_escape").decode() or "nothing"
            raise DataError(
                f"{where}: sample {sample.key!r} has {len(images)} images among its members ({found})"
                f"{_key_rule(sample, images)}"
            )
        if labelled is not None and LABEL not in sample.members:
            raise DataError(f"{where}: sample {sample.key!r} has no .{LABEL}, but {labelled!r} has one")


def _key_rule(sample: Sample, images: list[str]) -> str:
    """How to rename members whose names have dots, or that are several images; "" where that is not the cause."""
    dotted = [name for name in sample.members if name.rpartition(".")[2] in IMAGE_FORMATS and "." in name]
    if not images and dotted:
        stem, _, extension = dotted[0].rpartition(".")
        base = sample.key.rpartition("/")[2]
        renamed = f"{base}.{dotted[0]} to {base}_{stem.replace('.', '_')}.{extension}"
        return f": a key ends at the first dot of a name, as in webdataset; rename such as {renamed}"
    if len(images) > 1:
        return ": members whose names are the same up to the first dot are one sample, which must have one image"
    return f"; images end in {', '.join(f'.{name}' for name in IMAGE_FORMATS)}" if sample.members else ""


def _members(source: RangeFile, where: str) -> Iterator[tuple[str, str, Member, memoryview]]:
    """(key, extension, member, its bytes) of every file of a tar, in order."""
    from webdataset.tariterators import base_plus_ext

    _check_magic(source, where)
    with _tar_errors(where):
        tar = tarfile.open(fileobj=source, mode="r:", ignore_zeros=False)  # noqa: SIM115
    end = 0
    while True:
        with _tar_errors(where):
            info = tar.next()
        if info is None:
            break
        tar.members = []  # type: ignore[attr-defined]  # else tarfile keeps them all
        if info.offset < end or info.size < 0 or info.offset_data + info.size > source.size:
            raise DataError(f"{where}: truncated: {info.name!r} extends beyond the {source.size} bytes of the tar")
        end = tar.offset
        if info.isdir() or _META.match(info.name):
            continue
        if not info.isreg() or info.issparse():
            raise DataError(f"{where}: {info.name!r} is not a regular file (a link, a device or sparse)")
        _check_name(info.name, where)
        key, extension = base_plus_ext(info.name)
        if key is None:
            continue  # a name without an extension is not part of a sample
        source.seek(info.offset_data)
        data = memoryview(source.read(info.size))
        yield key, extension.lower(), Member(info.offset_data, info.size, zlib.crc32(data)), data
    _check_end(source, end, where)


def _check_name(name: str, where: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise DataError(f"{where}: the name {name!r} is not UTF-8") from None


def _check_magic(source: RangeFile, where: str) -> None:
    head = source.read(_BLOCK)
    source.seek(0)
    for magic, format in ((b"\x1f\x8b", "gzip"), (b"BZh", "bzip2"), (b"\xfd7zXZ", "xz"), (b"\x28\xb5\x2f\xfd", "zstd")):
        if head.startswith(magic):
            raise DataError(
                f"{where}: compressed with {format}; shards must be plain tars, which can be read in ranges"
            )
    if not head:
        raise DataError(f"{where}: empty, not a tar")


def _check_end(source: RangeFile, end: int, where: str) -> None:
    """After the last member there must be zeros up to the end, at least one block."""
    source.seek(end)
    tail = source.size - end
    if tail < _BLOCK:
        raise DataError(f"{where}: truncated: the end-of-archive block is missing at byte {source.size}")
    while chunk := source.read(_READ):
        if chunk.count(0) != len(chunk):
            raise DataError(f"{where}: damaged: the bytes after {end} are not a member of the archive")


@contextlib.contextmanager
def _tar_errors(where: str) -> Iterator[None]:
    """Turn what tarfile raises on damaged or crafted bytes into a `DataError`."""
    try:
        yield
    except (DataError, OSError):
        raise
    except Exception as error:  # tarfile raises all kinds of exceptions on crafted headers
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{where}: not a tar, or a damaged one ({reason})") from error


class RangeFile(io.RawIOBase):
    """A shard as a seekable file: small reads are served from large range requests."""

    def __init__(self, storage: Storage, name: str):
        entry = storage.stat(name)
        if entry is None:
            raise DataError(f"{storage.url}/{name}: no such shard")
        self.size = entry.size
        self.etag = entry.etag
        self._storage = storage
        self._name = name
        self._place = 0
        self._start = 0
        self._held = memoryview(b"")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self.size}[whence]
        self._place = max(base + offset, 0)
        return self._place

    def read(self, size: int | None = -1) -> bytes:
        stop = self.size if size is None or size < 0 else min(self._place + size, self.size)
        start = self._place
        if stop <= start:
            return b""
        if start < self._start or stop > self._start + len(self._held):
            self._held = self._storage.read_range(self._name, start, min(max(stop, start + _READ), self.size))
            self._start = start
            if len(self._held) < stop - start:
                raise DataError(f"{self._storage.url}/{self._name}: was truncated while it was read")
        self._place = stop
        return bytes(self._held[start - self._start : stop - self._start])
