"""The index of shards: made once, so that nothing has to be scanned or trusted afterwards.

Opening it is O(shards) and, on a local disk, memory-mapped; the members of a shard are read when the shard is.
`datasets.shards.index_files` says how it lies on disk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cluster.storage.errors import MissingError
from cluster.storage.storage import Storage, join
from datasets.errors import DataError
from datasets.images.decode import Format
from datasets.shards.index_files import SCHEMA, Meta, Shard, member_file, numbers, read_index, read_table
from datasets.shards.shard_list import ShardList

if TYPE_CHECKING:  # a loader process does without pydantic: it is up sooner
    from datasets.config import DataConfig

_NAMES_AT_ONCE = 1 << 14  # as Python strings


class Part:
    """The shards of one folder, or some of them."""

    def __init__(self, entry: str, location: str = ""):
        self.entry, self.location = entry, location
        self.list = ShardList.parse(entry)
        url = self.list.folder
        self.url = url
        self.storage = Storage(url)
        self.index_url = location or join(url, "index")
        self._members = Storage(join(self.index_url, "members"))
        self.meta, table = read_index(url, self.index_url)
        if self.list.names:
            table = table.take(self.list.select(table.column("name").to_pylist()))
        if not table.num_rows:
            raise DataError(f"{url}: the index lists no shards; run python -m jobs.index {url}")
        self.table = table.combine_chunks()

    def members(self, row: int) -> pa.Table:
        """The samples of a shard: key, and <extension>.offset, .size and .crc32 (null: it has none)."""
        name, images = (self.table.column(column)[row].as_py() for column in ("name", "images"))
        try:
            table = read_table(self._members, member_file(name))
        except MissingError as error:
            raise DataError(f"{self.index_url}: lacks the members of {name}; {self.remedy}") from error
        if table.num_rows != images:
            raise DataError(f"{self.index_url}: {table.num_rows} members of {name} instead of {images}; {self.remedy}")
        return table

    @property
    def remedy(self) -> str:
        """What to do about an index that does not hold."""
        return f"run python -m jobs.index {self.entry}"


class Index:
    """The shards of one set or of several that are mixed, numbered through; opened by `Index.open` or `Index.of`."""

    def __init__(self, sets: Sequence[Sequence[Part]]):
        self._sets = sets
        self.parts = [part for parts in sets for part in parts]
        self.meta = _agreed(self.parts)
        self.counts: NDArray[np.int64] = self._column("images")
        self._starts = _starts([part.table.num_rows for part in self.parts])
        # the shards of set i are numbered set_bounds[i] to set_bounds[i + 1]
        self.set_bounds = _starts([sum(part.table.num_rows for part in parts) for parts in sets])

    @classmethod
    def open(cls, shards: str | Iterable[str], location: str = "") -> Index:
        """Open the index of a folder, a pattern or a list of these, as one set. Raises `DataError`."""
        return cls([_parts(shards, location)])

    @classmethod
    def of(cls, config: DataConfig) -> Index:
        """Open the index of what a run trains on: one set, or the sets of its mixture."""
        if not config.mixture:
            return cls.open(config.shards, config.index)
        return cls([_parts(mixed.shards, mixed.index) for mixed in config.mixture])

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, ([[(part.entry, part.location) for part in parts] for parts in self._sets],)

    @property
    def url(self) -> str:
        """Where the shards lie, in words."""
        return ", ".join(dict.fromkeys(part.url for part in self.parts))

    @property
    def format(self) -> Format:
        """What every image is."""
        return self.meta.format

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return self.meta.channels

    @property
    def height(self) -> int:
        """Rows of pixels."""
        return self.meta.height

    @property
    def width(self) -> int:
        """Columns of pixels."""
        return self.meta.width

    @property
    def levels(self) -> int:
        """L: a pixel has the values 0..L-1."""
        return self.meta.levels

    @property
    def classes(self) -> int:
        """How many classes the labels tell apart; 0: there are no labels."""
        return self.meta.classes

    @cached_property
    def images(self) -> int:
        """M, how many images there are."""
        return int(self.counts.sum())

    @cached_property
    def bytes_per_image(self) -> float:
        """The encoded bytes of an image in the shard where that is most."""
        full = self.counts > 0
        return float((self._column("bytes")[full] / self.counts[full]).max(initial=0))

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the relative names, counts and checksums of the shards: a copy in another bucket has the same."""
        digest = hashlib.blake2b(digest_size=16)
        for part in self.parts:
            for batch in part.table.select(["name"]).to_batches(max_chunksize=_NAMES_AT_ONCE):
                digest.update("\n".join([*batch.column(0).to_pylist(), ""]).encode())
            for name in ("images", "crc32"):
                digest.update(numbers(part.table.column(name)).astype("<i8").tobytes())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.counts)

    def place(self, number: int) -> tuple[Part, int]:
        """The part in which a shard lies, and its row there."""
        i = int(np.searchsorted(self._starts, number, side="right")) - 1
        return self.parts[i], number - int(self._starts[i])

    def shard(self, number: int) -> Shard:
        """Row `number` of the index."""
        part, row = self.place(number)
        return Shard(**{name: part.table.column(name)[row].as_py() for name in SCHEMA.names})

    def name(self, number: int) -> str:
        """The name of shard `number`, relative to its folder."""
        part, row = self.place(number)
        name: str = part.table.column("name")[row].as_py()
        return name

    def where(self, number: int) -> str:
        """The URL of shard `number`."""
        part, row = self.place(number)
        return join(part.url, part.table.column("name")[row].as_py())

    def odd_shard(self) -> str:
        """The URL of the first shard whose images are not all of the first one's size."""
        heights, widths = self._column("height"), self._column("width")
        other = (heights == 0) | (heights != heights[0]) | (widths != widths[0])
        return self.where(int(np.flatnonzero(other)[0]))

    @property
    def mixed_colours(self) -> str:
        """A line about a set in which some images are grey and some are not, naming one of the rarer kind; else "".

        All are read with the channels of the set, grey as equal parts of red, green and blue.
        """
        grey, counts = self._column("grey"), self.counts
        total = int(grey.sum())
        if total in (0, self.images):
            return ""
        few, kind = (total, "grey") if 2 * total <= self.images else (self.images - total, "in colour")
        number = int(np.flatnonzero(grey if kind == "grey" else counts - grey)[0])
        part, row = self.place(number)
        key = part.table.column("grey_key" if kind == "grey" else "colour_key")[row].as_py()
        which = f"sample {key!r} is" if key else "its images are"
        return (
            f"{self.where(number)}: {which} {kind}, {few:,} of {self.images:,} images in all; every image is read with "
            f"{self.channels} channels: leave out what does not belong into the set"
        )

    def members(self, number: int) -> pa.Table:
        """The samples of shard `number`, as `Part.members`."""
        part, row = self.place(number)
        return part.members(row)

    def _column(self, name: str) -> NDArray[Any]:
        columns = [numbers(part.table.column(name)) for part in self.parts]
        return columns[0] if len(columns) == 1 else np.concatenate(columns)


def _parts(shards: str | Iterable[str], location: str) -> list[Part]:
    return [Part(entry, location) for entry in ([shards] if isinstance(shards, str) else shards)]


def _reopen(sets: list[list[tuple[str, str]]]) -> Index:
    return Index([[Part(*part) for part in parts] for parts in sets])


def _starts(sizes: list[int]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(np.array(sizes, dtype=np.int64))])


def _agreed(parts: list[Part]) -> Meta:
    """What the images of all parts are. Raises `DataError` where they differ."""
    first = parts[0].meta
    for part in parts[1:]:
        if part.meta._replace(source=first.source, class_names=(), classes=0) != first._replace(
            class_names=(), classes=0
        ):
            raise DataError(f"{part.url} and {parts[0].url}: images of different formats do not go into one set")
        if (part.meta.classes > 0) != (first.classes > 0) or part.meta.class_names != first.class_names:
            raise DataError(f"{part.url} and {parts[0].url}: the classes of the two sets are not the same")
    return first._replace(classes=max(part.meta.classes for part in parts))
