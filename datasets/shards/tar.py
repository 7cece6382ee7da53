"""The members of a tar in order, with bounded memory and time whatever its headers claim."""

from __future__ import annotations

import contextlib
import io
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

from cluster.storage.storage import Storage
from datasets.errors import DataError

MAX_MEMBER = 1 << 30  # bytes; larger members are not read
_BLOCK = 512
_READ = 8 << 20  # bytes per request
_MAX_HEADER = 1 << 20  # bytes of a member's header with its extensions (long names, attributes)
_META = re.compile(r"__[^/]*__($|/)")  # names that webdataset skips
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class Member(NamedTuple):
    """A file of a tar."""

    offset: int  # bytes from the beginning of the tar
    size: int  # bytes
    crc32: int


class TarMember(NamedTuple):
    """A member as it was found."""

    key: str  # with `extension` as webdataset splits names; "": it belongs to no sample
    extension: str  # in lower case
    place: Member
    data: memoryview  # its bytes; empty if there is a `problem`
    problem: str = ""  # why it cannot be used


class BrokenTarError(DataError):
    """A tar that cannot be read any further."""

    def __init__(self, reason: str, name: str = "", ended: bool = False) -> None:
        super().__init__(reason)
        self.key, _ = _split(name)  # of the member that is cut, "" if it is not known
        self.ended = ended  # the members before are all of an archive


def members(source: RangeFile) -> Iterator[TarMember]:
    """Every file of a tar, in order. Raises `BrokenTarError` where it is damaged, after the members before that."""
    _check_magic(source)
    source.allow(_MAX_HEADER)
    with _tar_errors():
        tar = tarfile.open(fileobj=source, mode="r:", ignore_zeros=False)  # noqa: SIM115
    end = 0
    while True:
        source.allow(_MAX_HEADER)
        with _tar_errors():
            info = tar.next()
        if info is None:
            break
        tar.members = []  # type: ignore[attr-defined]  # else tarfile keeps them all
        if info.offset < end or info.size < 0 or info.offset_data + info.size > source.size:
            raise BrokenTarError(
                f"truncated: {_shown(info.name)} extends beyond the {source.size} bytes of the tar", info.name
            )
        end = tar.offset
        if not info.isdir():
            yield _member(source, info)
    _check_end(source, end)


def _member(source: RangeFile, info: tarfile.TarInfo) -> TarMember:
    place = Member(info.offset_data, info.size, 0)
    key, extension = ("", "") if _META.match(info.name) else _split(info.name)
    problem = _problem(info)
    if problem or not key:
        return TarMember(key, extension, place, memoryview(b""), problem)
    data = source.bytes(info.offset_data, info.offset_data + info.size)
    return TarMember(key, extension, place._replace(crc32=zlib.crc32(data)), data)


def _problem(info: tarfile.TarInfo) -> str:
    if not info.isreg() or info.issparse():
        return f"{_shown(info.name)} is not a regular file (a link, a device or sparse)"
    if info.size > MAX_MEMBER:
        return f"{_shown(info.name)} has {info.size:,} bytes; the limit is {MAX_MEMBER:,}"
    if _utf8(info.name) != info.name:
        return f"the name {_shown(info.name)} is not UTF-8"
    return ""


def _split(name: str) -> tuple[str, str]:
    """Key and extension of a name as webdataset splits it; "" for both if it is hidden or has no extension.

    webdataset makes a sample "folder/" of the hidden files of a folder.
    """
    if name.rpartition("/")[2].startswith("."):
        return "", ""
    key, extension = _base_plus_ext()(_utf8(name))
    return key or "", (extension or "").lower()


@cache
def _base_plus_ext() -> Callable[[str], tuple[str | None, str | None]]:
    from webdataset.tariterators import base_plus_ext  # which imports PyTorch

    split: Callable[[str], tuple[str | None, str | None]] = base_plus_ext
    return split


def _utf8(name: str) -> str:
    return name if name.isascii() else name.encode(errors="backslashreplace").decode()


def _shown(name: str) -> str:
    return repr(_utf8(name) if len(name) < 200 else f"{_utf8(name[:200])}...")


def _check_magic(source: RangeFile) -> None:
    head = bytes(source.bytes(0, min(_BLOCK, source.size)))
    for magic, format in _COMPRESSED.items():
        if head.startswith(magic):
            raise BrokenTarError(f"compressed with {format}; shards must be plain tars, which can be read in ranges")
    if not head:
        raise BrokenTarError("empty, not a tar")


def _check_end(source: RangeFile, end: int) -> None:
    """After the last member there must be zeros up to the end, at least one block."""
    if source.size - end < _BLOCK:
        raise BrokenTarError(f"truncated: the end-of-archive block is missing at byte {source.size}")
    ended = not any(source.bytes(end, end + _BLOCK))
    for start in range(end, source.size, _READ):
        chunk = bytes(source.bytes(start, min(start + _READ, source.size)))
        if chunk.count(0) != len(chunk):
            raise BrokenTarError(f"damaged: the bytes after {end} are not a member of the archive", ended=ended)


@contextlib.contextmanager
def _tar_errors() -> Iterator[None]:
    """Turn what tarfile raises on damaged or crafted bytes into a `BrokenTarError`."""
    try:
        yield
    except (DataError, OSError, MemoryError):
        raise
    except Exception as error:  # tarfile raises all kinds of exceptions on crafted headers
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise BrokenTarError(f"not a tar, or a damaged one ({reason})") from error


class RangeFile(io.RawIOBase):
    """A shard as a seekable file: small reads are served from large range requests.

    `read`, by which tarfile reads headers, returns at most the number of bytes that `allow` gave it.
    """

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
        self._allowed = 0

    def allow(self, size: int) -> None:
        """The number of bytes that may be read before the next call."""
        self._allowed = size

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
        self._allowed -= stop - start
        if self._allowed < 0:
            raise BrokenTarError(f"damaged: a header of more than {_MAX_HEADER:,} bytes at byte {start}")
        self._place = stop
        return bytes(self.bytes(start, stop))

    def bytes(self, start: int, stop: int) -> memoryview:
        """The bytes [start, stop), with start < stop or both 0."""
        if start < self._start or stop > self._start + len(self._held):
            self._held = self._storage.read_range(self._name, start, min(max(stop, start + _READ), self.size))
            self._start = start
            if len(self._held) < stop - start:
                raise DataError(f"{self._storage.url}/{self._name}: was truncated while it was read")
        return self._held[start - self._start : stop - self._start]
