"""What a source of images tells the packer."""

from __future__ import annotations

import gzip
import hashlib
import urllib.error
import urllib.request
from typing import NamedTuple, Protocol

import numpy as np

from cluster.storage.errors import MissingError
from cluster.storage.storage import Storage
from datasets.errors import DataError
from datasets.hashing import key_of, permute
from datasets.images.decode import Pixels
from datasets.shards.index_files import Meta

SPLITS = ("train", "validation")


class Example(NamedTuple):
    """One image, its class (None: it has none) and its caption."""

    image: Pixels | bytes  # uint8 [H, W, C], or a file as it is
    label: int | None
    extension: str = "png"  # of the file, where the image is one
    caption: bytes | None = None


class Source(Protocol):
    """Images in two splits, each in a fixed shuffled order."""

    parallel: bool  # whether it is worth copying to other processes: it reads files, and holds no images

    @property
    def meta(self) -> Meta | None:
        """What the images are; None: that is seen when they are packed."""

    @property
    def name(self) -> str:
        """Where the images come from, in words."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes."""

    def count(self, split: str) -> int:
        """How many images "train" or "validation" has."""

    def example(self, split: str, i: int) -> Example:
        """Image i of a split."""


class InMemory:
    """A source that knows what its images are and holds them."""

    parallel = False
    meta: Meta

    @property
    def name(self) -> str:
        """Where the images come from, in words."""
        return self.meta.source

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.meta.class_names


def fetch(folder: str, name: str, md5: str = "") -> bytes:
    """The bytes of a file, or of the .gz beside it unpacked, from a folder at a path or URL.

    Raises `DataError` if there is none, or if its md5 (of the unpacked bytes) is not the one given.
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
            raise DataError(f"{folder}/{candidate}: md5 of the unpacked bytes is {found}, it should be {md5}")
        return data
    raise DataError(f"{folder}: there is neither {name} nor {name}.gz")


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


def shuffled(images: int, key: str) -> np.ndarray:
    """A fixed permutation of 0..images-1, the same in every version of every library."""
    return permute(np.arange(images), np.array([images]), key_of(0, key))
