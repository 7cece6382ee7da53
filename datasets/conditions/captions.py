"""Captions as tokens, from .txt members and from fields of .json members."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datasets.conditions.condition import Arrays, Field, Sample
from datasets.errors import DataError
from datasets.hashing import Key, derive, key_of, uniform
from datasets.order.order import Integers
from datasets.shards.json_fields import MOST_BYTES, field_of, split_source

if TYPE_CHECKING:
    from tokenizers import Tokenizer

IDS, LENGTHS = "ids", "lengths"


_REMEMBERED, _SHORT = 1 << 15, 256  # captions that each process remembers, and their most characters


class Encoded(NamedTuple):
    """The tokens of a caption."""

    ids: NDArray[np.int32]  # [max_tokens], padded by zeros
    length: int
    problem: str  # "truncated", or nothing


@dataclass(frozen=True)
class TextCondition:
    """Tokens: NAME.ids int32 [n, max_tokens], padded by zeros, and NAME.lengths int32 [n]; length 0: unknown."""

    name: str
    sources: tuple[str, ...]
    """Extensions (`txt`), or extension and field (`json.recaption`, `json.meta.title`)."""
    probabilities: tuple[float, ...]
    """Of the sources; they sum to 1."""
    max_tokens: int
    tokenizer: str
    """The contents of a tokenizer.json."""
    missing: Literal["unknown", "bad"] = "unknown"
    seed: int = 0

    @property
    def members(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(split_source(source)[0] for source in self.sources))

    @property
    def choices(self) -> int:
        return len(self.sources)

    @property
    def layout(self) -> dict[str, Field]:
        ids, lengths = Field(np.dtype(np.int32), (self.max_tokens,)), Field(np.dtype(np.int32), ())
        return {f"{self.name}.{IDS}": ids, f"{self.name}.{LENGTHS}": lengths}

    def choose(self, positions: Integers) -> Integers:
        if self.choices == 1:
            return np.zeros(len(positions), dtype=np.int64)
        draws = uniform(derive(self._key, positions))
        chosen = np.searchsorted(np.cumsum(self.probabilities), draws, side="right")
        return np.minimum(chosen, self.choices - 1).astype(np.int64)

    def read(self, sample: Sample, choice: int, arrays: Arrays, row: int) -> str:
        ids, lengths = arrays[f"{self.name}.{IDS}"], arrays[f"{self.name}.{LENGTHS}"]
        source = self.sources[choice]
        extension, _ = split_source(source)
        text = caption_of(sample.member(extension), source)
        if text.problem:
            if self.missing == "bad":
                raise DataError(f"{self.name}: {source} is {text.problem}")
            ids[row], lengths[row] = 0, 0
            return text.problem
        ids[row], lengths[row], problem = self._encode(text.caption)
        return problem

    def adjust(self, arrays: Arrays, rows: Integers, positions: Integers) -> None:
        """Nothing: a caption does not depend on the position once it is chosen."""

    @cached_property
    def _key(self) -> Key:
        return key_of(self.seed, f"condition/{self.name}")

    @cached_property
    def _encode(self) -> Callable[[str], Encoded]:
        """Remembers captions: those of a small set of small images cost more to encode than their images to decode."""
        tokenizer = encoder(self.tokenizer, self.max_tokens)

        def encode(caption: str) -> Encoded:
            encoding = tokenizer.encode(caption)
            count = len(encoding.ids)
            ids = np.zeros(self.max_tokens, dtype=np.int32)
            ids[:count] = encoding.ids
            return Encoded(ids, count, "truncated" if encoding.overflowing else "")

        remembering = lru_cache(_REMEMBERED)(encode)
        return lambda caption: (remembering if len(caption) <= _SHORT else encode)(caption)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_encode"}


@dataclass(frozen=True)
class Text:
    """A caption, or why there is none: missing, empty, undecodable, or too-long."""

    caption: str = ""
    problem: str = ""


def caption_of(data: bytes | memoryview | None, source: str) -> Text:
    """The caption in the bytes of a member; the source says which field of a .json."""
    if data is None:
        return Text(problem="missing")
    if len(data) > MOST_BYTES:
        return Text(problem="too-long")
    try:
        text = str(data, "utf-8")
        if path := split_source(source)[1]:
            found = field_of(json.loads(text), path)
            if found is None:
                return Text(problem="missing")
            if not isinstance(found, str):
                return Text(problem="undecodable")
            text = found
    except (UnicodeDecodeError, ValueError, RecursionError):
        return Text(problem="undecodable")
    caption = " ".join(text.split())
    return Text(caption) if caption else Text(problem="empty")


def encoder(tokenizer: str, max_tokens: int) -> Tokenizer:
    """The tokenizer from the contents of a tokenizer.json, cutting texts to `max_tokens`. Raises DataError."""
    from tokenizers import Tokenizer

    try:
        loaded = Tokenizer.from_str(tokenizer)
    except Exception as error:  # the library raises plain Exception
        raise DataError(f"not a tokenizer.json that tokenizers can read ({_first_line(error)})") from error
    loaded.no_padding()
    loaded.enable_truncation(max_tokens)
    return loaded


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
