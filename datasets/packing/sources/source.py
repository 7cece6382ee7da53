"""The interface of a source of images, and what sources share."""

from __future__ import annotations

import gzip
import hashlib
import io
import urllib.error
import urllib.request
import zlib
from dataclasses import dataclass
from typing import IO, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from cluster.storage.errors import MissingError
from cluster.storage.storage import Storage
from datasets.errors import DataError
from datasets.hashing import feistel, key_of
from datasets.images.decode import Pixels
from datasets.shards.index_files import PACKED_SPLITS, Meta

SPLITS = PACKED_SPLITS
MAX_BYTES = 1 << 30  # of a file that is read into memory, decompressed
_PART = 16 << 20  # bytes read at a time


class Example(NamedTuple):
    """One image, its class and its caption (None: it has none)."""

    image: Pixels | bytes  # uint8 [H, W, C], or the bytes of a file
    label: int | None
    caption: bytes | None = None
    fields: bytes | None = None  # JSON


class Part(Protocol):
    """Consecutive images of a split. Of a source with `parallel` it can be copied to another process."""

    def __len__(self) -> int:
        """The number of images."""

    def example(self, i: int) -> Example:
        """Image i. Raises `DataError` if it cannot be read."""

    def where(self, i: int) -> str:
        """The name of image i for a person: the path of its file."""

    def fingerprint(self) -> str:
        """A hash that changes if any of the images, labels or captions does."""


class Source(Protocol):
    """Images in splits, each in a fixed shuffled order."""

    splits: tuple[str, ...]  # names of the splits that it may have
    parallel: bool  # whether parts can be written by other processes: they read files and hold no images

    @property
    def meta(self) -> Meta | None:
        """The format of the images; None: found while packing."""

    @property
    def name(self) -> str:
        """Where the images come from, for a reader."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes."""

    def count(self, split: str) -> int:
        """The number of images of a split; 0: the source has no such split."""

    def part(self, split: str, start: int, stop: int) -> Part:
        """Images [start, stop) of a split."""

    def found(self) -> list[str]:
        """What the source has, in lines for a person: splits, classes, formats, and what was skipped."""


class InMemory:
    """A source that holds its images in memory and knows their format."""

    splits: tuple[str, ...] = SPLITS
    parallel = False
    meta: Meta

    @property
    def name(self) -> str:
        """Where the images come from, for a reader."""
        return self.meta.source

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.meta.class_names

    def count(self, split: str) -> int:
        """The number of images of a split."""
        raise NotImplementedError

    def example(self, split: str, i: int) -> Example:
        """Image i of a split."""
        raise NotImplementedError

    def part(self, split: str, start: int, stop: int) -> Part:
        """Images [start, stop) of a split."""
        return _ArrayPart(self, split, start, stop)

    def found(self) -> list[str]:
        """The splits and the format."""
        meta = self.meta
        classes = f", {meta.classes} classes" if meta.classes else ""
        format = f"{meta.width} x {meta.height}, {meta.channels} channels, {meta.levels} levels{classes}"
        counts = ", ".join(f"{split} {self.count(split):,}" for split in self.splits if self.count(split))
        return [f"found {meta.source}: {format}; images: {counts}"]


@dataclass(frozen=True)
class _ArrayPart:
    source: InMemory
    split: str
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def example(self, i: int) -> Example:
        return self.source.example(self.split, self.start + i)

    def where(self, i: int) -> str:
        return f"image {self.start + i} of {self.split}"

    def fingerprint(self) -> str:
        digest = hashlib.blake2b(repr(self.source.meta).encode(), digest_size=16)
        for i in range(len(self)):
            image, label, caption, fields = self.example(i)
            digest.update(f"{label} {np.shape(image)}".encode())
            digest.update(image if isinstance(image, bytes) else image.tobytes())
            if caption is not None or fields is not None:
                digest.update(repr((caption, fields)).encode())
        return digest.hexdigest()


def fetch(folder: str, name: str, md5: str = "") -> bytes:
    """The bytes of a file, or of its .gz decompressed, from a folder at a path or URL.

    Raises `DataError` if neither exists, or if the MD5 of the decompressed bytes is not `md5`.
    """
    for candidate in (name, name + ".gz"):
        data = _read(folder, candidate)
        if data is None:
            continue
        if candidate.endswith(".gz"):
            data = _decompress(data, f"{folder}/{candidate}")
        found = hashlib.md5(data, usedforsecurity=False).hexdigest()
        if md5 and found != md5:
            raise DataError(f"{folder}/{candidate}: the MD5 of the decompressed bytes is {found}, expected {md5}")
        return data
    raise DataError(f"{folder}: neither {name} nor {name}.gz exists")


def _decompress(data: bytes, where: str) -> bytes:
    try:
        with gzip.open(io.BytesIO(data)) as stream:
            return _read_all(stream, where)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{where}: damaged ({error})") from error


def _read_all(stream: IO[bytes] | gzip.GzipFile, where: str) -> bytes:
    """All bytes of a stream. Raises `DataError` if they are more than any set of this kind has."""
    parts = [stream.read(_PART)]
    size = len(parts[0])
    while parts[-1]:
        parts.append(stream.read(_PART))
        size += len(parts[-1])
        if size > MAX_BYTES:
            raise DataError(f"{where}: more than {MAX_BYTES:,} bytes, which no set of this kind has")
    return b"".join(parts)


def exists(folder: str, name: str) -> bool:
    """Whether a folder at a path or URL has a file, plain or as .gz."""
    return any(_read(folder, candidate) is not None for candidate in (name, name + ".gz"))


def _read(folder: str, name: str) -> bytes | None:
    if folder.startswith(("http://", "https://")):
        try:
            with urllib.request.urlopen(f"{folder.rstrip('/')}/{name}", timeout=60) as response:
                return _read_all(response, f"{folder}/{name}")
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise DataError(f"{folder}/{name}: {error}") from error
        except OSError as error:
            raise DataError(f"{folder}/{name}: {error}") from error
    try:
        return Storage(folder).read(name)
    except MissingError:
        return None


def shuffled(images: int, key: str) -> NDArray[np.int64]:
    """A fixed permutation of 0..images-1, the same with every version of every library."""
    return feistel(np.arange(images), np.array([images]), key_of(0, key))
