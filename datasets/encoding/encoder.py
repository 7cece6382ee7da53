"""The interface of encoders, and how one is found by name."""

from __future__ import annotations

import hashlib
import importlib
import inspect
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from datasets.errors import DataError
from datasets.images.decode import Pixels
from datasets.order.order import Integers
from datasets.shards.encoded import Reads
from datasets.shards.index import Index


class Samples(NamedTuple):
    """Some samples of a shard, as an encoder gets them."""

    keys: list[str]
    positions: Integers  # int64 [n]: numbers of the samples in the set
    images: list[Pixels]  # uint8 [H, W, C], upright; empty for an encoder that reads no images
    members: dict[str, list[bytes | None]]  # by extension, those that the encoder reads; None: the sample has none


class Encoder(Protocol):
    """What `module:function` returns: it is called with the samples of a batch.

    Optional attributes: `members`, extensions that it reads besides the image; `images = False`, if it needs no image;
    `identity`, a text that changes whenever its results do, in place of a hash of its module and options;
    `open(index)`, a method that is called with the index of the set before the others.
    """

    def __call__(self, samples: Samples) -> Mapping[str, Sequence[Any]]:
        """For each field a value for each sample: an array or tensor of any shape, a number, or None for no value."""


class EncoderName(NamedTuple):
    """An encoder and its options: all that a process needs to make it."""

    name: str  # module:function
    options: tuple[tuple[str, Any], ...] = ()  # keyword arguments


class SetName(NamedTuple):
    """A set and what is joined to it."""

    shards: str  # URL
    location: str  # of its index
    columns: tuple[str, ...] = ()  # URLs of encoded shards


@lru_cache(1)
def open_encoder(name: EncoderName, given: SetName) -> tuple[Encoder, Index]:
    """The encoder and the index of the set, opened once in a process. Raises `DataError`."""
    encoder, index = _make_encoder(name), Index.open(*given)
    if (open := getattr(encoder, "open", None)) is not None:
        open(index)
    return encoder, index


def _make_encoder(name: EncoderName) -> Encoder:
    """The encoder of a name. Raises `DataError` if there is none."""
    module, _, function = name.name.partition(":")
    if not module or not function:
        raise DataError(f"--with {name.name}: not MODULE:FUNCTION")
    try:
        found = getattr(importlib.import_module(module), function, None)
    except ModuleNotFoundError as error:
        raise DataError(f"--with {name.name}: {error}; it is looked for here and in PYTHONPATH") from error
    if not callable(found):
        raise DataError(f"--with {name.name}: {module} has no function {function}")
    try:
        inspect.signature(found).bind(**dict(name.options))
    except TypeError as error:
        raise DataError(f"--with {name.name}: {error}; options are given by --option NAME=VALUE") from error
    encoder: Encoder = found(**dict(name.options))
    if not callable(encoder):
        raise DataError(f"--with {name.name}: returned {type(encoder).__name__}, which cannot be called with samples")
    return encoder


def reads_of(encoder: Encoder) -> Reads:
    """What an encoder reads of a sample."""
    return Reads(bool(getattr(encoder, "images", True)), tuple(getattr(encoder, "members", ())))


def hash_of(name: EncoderName, encoder: Encoder) -> str:
    """A hash that changes with an encoder: of its `identity`, or else of its module's file and options."""
    identity = getattr(encoder, "identity", None)
    if identity is None:
        source = inspect.getsourcefile(importlib.import_module(name.name.partition(":")[0]))
        identity = [name, Path(source).read_bytes() if source else b""]
    return hashlib.blake2b(repr(identity).encode(), digest_size=16).hexdigest()
