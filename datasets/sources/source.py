"""What a source of images tells the packer."""

from __future__ import annotations

import gzip
import hashlib
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np

from cluster.storage import MissingError, Storage
from datasets.decode import Pixels
from datasets.errors import DataError
from datasets.index import Meta

SPLITS = ("train", "validation")


class Example(NamedTuple):
    """One image and its class (None: it has none)."""

    image: Pixels  # uint8 [H, W, C]
    label: int | None


class Source(Protocol):
    """Images in two splits, always in the same order."""

    meta: Meta

    def examples(self, split: str) -> Iterator[Example]:
        """The images of "train" or "validation"."""

    def count(self, split: str) -> int:
        """How many there are."""


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
                return response.read()
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
    from datasets.hashing import key_of, permute

    return permute(np.arange(images), np.array([images]), key_of(0, key))
