"""The index of a folder of shards: made once, so that nothing has to be scanned or trusted afterwards.

    <folder>/index/index.json           what the images are
    <folder>/index/shards.arrow         a row a shard: name, images, bytes, etag, crc32 (of its members' checksums)
    <folder>/index/members/NAME.arrow   a row a sample of shard NAME: key, and offset, size and crc32 by extension

Opening it is O(shards) and, on a local disk, memory-mapped; the members of a shard are read when the shard is.
"""

from __future__ import annotations

import hashlib
import io
import json
import zlib
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cluster.storage import MissingError, Storage, join
from datasets.decode import Format
from datasets.errors import DataError
from datasets.scan import Sample, scan_tar

VERSION = 1
_COLUMNS = {"name": pa.string(), "images": pa.int64(), "bytes": pa.int64(), "etag": pa.string(), "crc32": pa.uint32()}
_SHARDS = pa.schema(list(_COLUMNS.items()))


class Shard(NamedTuple):
    """A row of the index."""

    name: str  # relative to the folder
    images: int
    bytes: int
    etag: str
    crc32: int  # of its members' sizes and checksums


class Meta(NamedTuple):
    """What the images of a set are, as index.json says it."""

    channels: int
    height: int
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


class Index:
    """The index of the shards at `url`, opened by `Index.open`."""

    def __init__(self, url: str, location: str, meta: Meta, table: pa.Table):
        self.url = url
        self.location = location
        self.meta = meta
        self.counts: NDArray[np.int64] = table.column("images").to_numpy()
        self._table = table.combine_chunks()
        self.storage = Storage(url)
        self._members = Storage(join(location, "members"))

    @classmethod
    def open(cls, url: str, location: str = "") -> Index:
        """Open the index of the folder at `url`, or at `location`. Raises `DataError` where there is none."""
        location = location or join(url, "index")
        storage = Storage(location)
        try:
            meta = _meta(storage.read("index.json"), location)
            table = _read_table(storage, "shards.arrow")
        except MissingError as error:
            raise DataError(_what_is_missing(url, location)) from error
        if not table.schema.equals(_SHARDS):
            raise DataError(f"{location}/shards.arrow: not the index of shards; run python -m jobs.index {url}")
        if not table.num_rows:
            raise DataError(f"{url}: the index lists no shards; run python -m jobs.index {url}")
        return cls(url, location, meta, table)

    def __reduce__(self) -> tuple[Any, ...]:
        return Index.open, (self.url, self.location)  # a copy maps the files itself

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
        sizes = self._table.column("bytes").to_numpy()
        full = self.counts > 0
        return float((sizes[full] / self.counts[full]).max())

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the relative names, counts and checksums of the shards: a copy in another bucket has the same."""
        digest = hashlib.blake2b(digest_size=16)
        names = self._table.column("name")
        for column in (pc.binary_length(names), self._table.column("images"), self._table.column("crc32")):
            digest.update(np.ascontiguousarray(column.to_numpy()).tobytes())
        for chunk in names.chunks:
            digest.update("".join(chunk.to_pylist()).encode())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.counts)

    def shard(self, number: int) -> Shard:
        """Row `number` of the index."""
        return Shard(**{name: self._table.column(name)[number].as_py() for name in _SHARDS.names})

    def name(self, number: int) -> str:
        """The name of shard `number`, relative to the folder."""
        return self._table.column("name")[number].as_py()

    def members(self, number: int) -> pa.Table:
        """The samples of shard `number`: key, and <extension>.offset, .size and .crc32 (null: it has none)."""
        shard = self.shard(number)
        try:
            table = _read_table(self._members, member_file(shard.name))
        except MissingError as error:
            raise DataError(
                f"{self.location}: the index lacks the members of {shard.name}; run python -m jobs.index {self.url}"
            ) from error
        if table.num_rows != shard.images:
            raise DataError(
                f"{self.location}: {table.num_rows} members of {shard.name} instead of {shard.images}; "
                f"run python -m jobs.index {self.url}"
            )
        return table


def member_file(shard: str) -> str:
    """The name of the file of a shard's members below index/members/."""
    return f"{shard}.arrow"


def index_shard(folder: Storage, name: str, location: Storage) -> tuple[Shard, set[tuple[int, int, int]], int]:
    """Scan a shard and write the table of its members.

    Returns its row, every (height, width, channels) of its images, and the largest label + 1 (0: no labels).
    Raises `DataError` in one line for anything that is not a whole tar of whole samples.
    """
    scan = scan_tar(folder, name)
    table = member_table(scan.samples)
    location.write(f"members/{member_file(name)}", write_table(table))
    entry = folder.stat(name)
    row = Shard(name, len(scan.samples), scan.bytes, entry.etag if entry else "", _checksum(table))
    return row, scan.sizes, scan.labels


def write_index(location: Storage, meta: Meta, shards: Sequence[Shard]) -> None:
    """Write the table of shards, and index.json last: what has none is no index."""
    columns = [pa.array([getattr(shard, field.name) for shard in shards], field.type) for field in _SHARDS]
    location.write("shards.arrow", write_table(pa.Table.from_arrays(columns, schema=_SHARDS)))
    location.write("index.json", (json.dumps({"version": VERSION} | meta._asdict(), indent=1) + "\n").encode())


def member_table(samples: Iterable[Sample]) -> pa.Table:
    """The table of a shard's samples."""
    samples = list(samples)
    columns: dict[str, pa.Array] = {"key": pa.array([sample.key for sample in samples], pa.string())}
    for extension in sorted({extension for sample in samples for extension in sample.members}):
        members = [sample.members.get(extension) for sample in samples]
        for field, kind in (("offset", pa.int64()), ("size", pa.int64()), ("crc32", pa.uint32())):
            values = [None if member is None else getattr(member, field) for member in members]
            columns[f"{extension}.{field}"] = pa.array(values, kind)
    return pa.table(columns)


def write_table(table: pa.Table) -> bytes:
    """A table as an Arrow IPC file."""
    stream = io.BytesIO()
    with pa.ipc.new_file(stream, table.schema) as writer:
        writer.write_table(table)
    return stream.getvalue()


def _read_table(storage: Storage, path: str) -> pa.Table:
    local = storage.local_path(path)
    try:
        if local is None:
            return pa.ipc.open_file(pa.BufferReader(storage.read(path))).read_all()
        if not local.is_file():
            raise MissingError(f"{local}: there is no such file")
        return pa.ipc.open_file(pa.memory_map(str(local))).read_all()
    except pa.ArrowInvalid as error:
        raise DataError(f"{join(storage.url, path)}: damaged; run python -m jobs.index again") from error


def _checksum(table: pa.Table) -> int:
    crc = zlib.crc32("\n".join(table.column("key").to_pylist()).encode())
    for name in table.column_names:
        if name.endswith((".size", ".crc32")):
            column = np.ascontiguousarray(table.column(name).fill_null(0).to_numpy())
            crc = zlib.crc32(column.tobytes(), zlib.crc32(name.encode(), crc))
    return crc


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
