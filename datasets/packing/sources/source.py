"""The interface of a source of images, and what sources share."""

from __future__ import annotations

import gzip
import hashlib
import urllib.error
import urllib.request
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from cluster.storage.errors import MissingError
from cluster.storage.storage import Storage
from datasets.errors import DataError
from datasets.hashing import feistel, key_of
from datasets.images.decode import Pixels
from datasets.shards.index_files import Meta

SPLITS = ("train", "validation")


class Example(NamedTuple):
    """One image, its class and its caption (None: it has none)."""

    image: Pixels | bytes  # uint8 [H, W, C], or the bytes of a file
    label: int | None
    extension: str = "png"  # of the file, if the image is bytes
    caption: bytes | None = None


class Source(Protocol):
    """Images in two splits, each in a fixed shuffled order."""

    parallel: bool  # whether to copy it to other processes: it reads files and holds no images

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
        """The number of images of "train" or "validation"."""

    def example(self, split: str, i: int) -> Example:
        """Image i of a split."""


class InMemory:
    """A source that holds its images in memory and knows their format."""

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


def fetch(folder: str, name: str, md5: str = "") -> bytes:
    """The bytes of a file, or of its .gz decompressed, from a folder at a path or URL.

    Raises `DataError` if neither exists, or if the MD5 of the decompressed bytes is not `md5`.
    """
    for candidate in (name, name + ".gz"):
        data = _read(folder, candidate)
        if data is None:
            continue
        if candidate.endswith(".gz"):
            try:
                data = gzip.decompress(data)
            except (OSError, EOFError) as error:
                raise DataError(f"{folder}/{candidate}: damaged ({error})") from error
        found = hashlib.md5(data, usedforsecurity=False).hexdigest()
        if md5 and found != md5:
            raise DataError(f"{folder}/{candidate}: the MD5 of the decompressed bytes is {found}, expected {md5}")
        return data
    raise DataError(f"{folder}: neither {name} nor {name}.gz exists")


def _read(folder: str, name: str) -> bytes | None:
    if folder.startswith(("http://", "https://")):
        try:
            with urllib.request.urlopen(f"{folder.rstrip('/')}/{name}", timeout=60) as response:
                data: bytes = response.read()
                return data
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
