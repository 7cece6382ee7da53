"""The index of shards: made once, so that nothing has to be scanned or trusted afterwards.

    <folder>/index/index.json           what the images are
    <folder>/index/shards.arrow         a row a shard: name, images, bytes, etag, crc32 (of its members' checksums), ...
    <folder>/index/members/NAME.arrow   a row a sample of shard NAME: key, and offset, size and crc32 by extension

Opening it is O(shards) and, on a local disk, memory-mapped; the members of a shard are read when the shard is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cluster.storage import MissingError, Storage, join
from datasets.config import DataConfig
from datasets.decode import Format
from datasets.errors import DataError
from datasets.shardlist import ShardList

VERSION = 1
_NAMES_AT_ONCE = 1 << 14  # as Python strings
SCHEMA = pa.schema(
    [
        ("name", pa.string()),  # relative to the folder
        ("images", pa.int64()),
        ("bytes", pa.int64()),
        ("etag", pa.string()),  # the store's fingerprint of the content when it was indexed
        ("crc32", pa.uint32()),  # of the keys, sizes and checksums of its members
        ("channels", pa.int32()),  # of its images, the most of any
        ("height", pa.int32()),  # of all its images; 0: they differ
        ("width", pa.int32()),
        ("classes", pa.int64()),  # the largest label + 1; 0: no labels
    ]
)


class Shard(NamedTuple):
    """A row of the index: see `SCHEMA`."""

    name: str
    images: int
    bytes: int
    etag: str
    crc32: int
    channels: int
    height: int
    width: int
    classes: int


class Meta(NamedTuple):
    """What the images of a set are, as index.json says it."""

    channels: int
    height: int  # 0: the images differ in size, and the run has to crop or resize them
    width: int
    levels: int = 256
    classes: int = 0
    class_names: tuple[str, ...] = ()
    binarised: str = ""  # "static" or "stochastic" for sets of binary images, and how
    source: str = ""  # where the images come from, in words

    @property
    def format(self) -> Format:
        """What a decoder needs of it."""
        return Format(self.channels, self.height, self.width, self.levels, self.classes)


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
                digest.update(part.table.column(name).to_numpy().astype("<i8").tobytes())
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
        return part.table.column("name")[row].as_py()

    def where(self, number: int) -> str:
        """The URL of shard `number`."""
        part, row = self.place(number)
        return join(part.url, part.table.column("name")[row].as_py())

    def odd_shard(self) -> str:
        """The URL of the first shard whose images are not all of the first one's size."""
        heights, widths = self._column("height"), self._column("width")
        other = (heights == 0) | (heights != heights[0]) | (widths != widths[0])
        return self.where(int(np.flatnonzero(other)[0]))

    def members(self, number: int) -> pa.Table:
        """The samples of shard `number`, as `Part.members`."""
        part, row = self.place(number)
        return part.members(row)

    def _column(self, name: str) -> NDArray[Any]:
        columns = [part.table.column(name).to_numpy() for part in self.parts]
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


# ---- files


def member_file(shard: str) -> str:
    """The name of the file of a shard's members below index/members/."""
    return f"{shard}.arrow"


def read_index(url: str, location: str) -> tuple[Meta, pa.Table]:
    """index.json and the table of shards at `location`. Raises `DataError` where there are none."""
    storage = Storage(location)
    try:
        meta = _meta(storage.read("index.json"), location)
        table = read_table(storage, "shards.arrow")
    except MissingError as error:
        raise DataError(_what_is_missing(url, location)) from error
    if not table.schema.equals(SCHEMA):
        raise DataError(f"{location}/shards.arrow: not the index of shards; run python -m jobs.index {url}")
    return meta, table


def write_index(location: Storage, meta: Meta, shards: Sequence[Shard]) -> None:
    """Write the table of shards, and index.json last: what has none is no index."""
    columns = [pa.array([shard[i] for shard in shards], field.type) for i, field in enumerate(SCHEMA)]
    location.write("shards.arrow", encode_table(pa.Table.from_arrays(columns, schema=SCHEMA)))
    location.write("index.json", (json.dumps({"version": VERSION} | meta._asdict(), indent=1) + "\n").encode())


def encode_table(table: pa.Table) -> bytes:
    """A table as an Arrow IPC file."""
    stream = pa.BufferOutputStream()
    with pa.ipc.new_file(stream, table.schema) as writer:
        writer.write_table(table)
    return stream.getvalue().to_pybytes()


def read_table(storage: Storage, path: str) -> pa.Table:
    """A table from an Arrow IPC file: memory-mapped from a local disk. Raises `DataError` if it is damaged."""
    local = storage.local_path(path)
    try:
        if local is None:
            return pa.ipc.open_file(pa.BufferReader(storage.read(path))).read_all()
        if not local.is_file():
            raise MissingError(f"{local}: there is no such file")
        return pa.ipc.open_file(pa.memory_map(str(local))).read_all()
    except pa.ArrowInvalid as error:
        raise DataError(f"{join(storage.url, path)}: damaged; run python -m jobs.index again") from error


def _meta(data: bytes, location: str) -> Meta:
    try:
        fields = json.loads(data)
        version = fields.pop("version")
        if version != VERSION:
            raise DataError(f"{location}/index.json is of version {version}, this program reads {VERSION}")
        return Meta(**fields | {"class_names": tuple(fields["class_names"])})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{location}/index.json: damaged ({error}); run python -m jobs.index again") from error


def _what_is_missing(url: str, location: str) -> str:
    if location == join(url, "index") and next(Storage(url).list(), None) is None:
        return f"{url}: there is no such folder, or it is empty; data.shards names a folder of .tar shards"
    return f"{url}: the shards have no index at {location}; make it with: python -m jobs.index {url}"
