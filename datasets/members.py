"""The encoded images of a window: read in one range request a shard, cut out by the index, checked by CRC."""

from __future__ import annotations

import threading
import zlib
from collections import OrderedDict
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cluster.storage import StorageError
from datasets.decode import IMAGE_FORMATS, LABEL
from datasets.errors import DataError
from datasets.index import Index
from datasets.order import Range

_SHARDS_KEPT = 64  # tables of members held: at least the streams' own shards are worth it


class Column(NamedTuple):
    """Where the members of one kind lie in a shard, a row a sample; size -1 where a sample has none."""

    offset: NDArray[np.int64]
    size: NDArray[np.int64]
    crc32: NDArray[np.int64]


class ShardMembers(NamedTuple):
    """The images and labels of a shard."""

    keys: pa.ChunkedArray
    formats: list[str]  # the extensions of images
    format: NDArray[np.int64]  # of each sample's image, a place in `formats`
    image: Column
    label: Column | None


class EncodedRange(NamedTuple):
    """Neighbouring samples of a shard as they lie there."""

    shard: int
    first: int  # index in the shard of the first sample
    begin: int  # byte of the shard at which `data` begins
    data: memoryview
    members: ShardMembers


class MemberReader:
    """Reads ranges of samples from the shards of an index. Safe to use from several threads."""

    def __init__(self, index: Index):
        self.index = index
        self.bytes_read = 0
        self._lock = threading.Lock()
        self._shards: OrderedDict[int, ShardMembers] = OrderedDict()

    def read(self, wanted: Range) -> EncodedRange:
        """The samples of a range, in one request. What the shard does not hold any longer is told sample by sample."""
        members = self._members(wanted.shard)
        rows = slice(wanted.start, wanted.stop)
        columns = [column for column in (members.image, members.label) if column is not None]
        present = [column for column in columns if (column.size[rows] >= 0).any()]
        begin = min(int(column.offset[rows][column.size[rows] >= 0].min()) for column in present)
        end = max(int((column.offset[rows] + column.size[rows]).max()) for column in present)
        data = self._bytes(wanted.shard, begin, end)
        return EncodedRange(wanted.shard, wanted.start, begin, data, members)

    def image(self, held: EncodedRange, row: int) -> tuple[memoryview, str]:
        """The bytes of the image of sample `row` of the range, and its extension."""
        index = held.first + row
        extension = held.members.formats[held.members.format[index]]
        return self._member(held, index, held.members.image, extension), extension

    def label(self, held: EncodedRange, row: int) -> memoryview | None:
        """The bytes of its label; None if it has none."""
        index, column = held.first + row, held.members.label
        if column is None or column.size[index] < 0:
            return None
        return self._member(held, index, column, LABEL)

    def where(self, held: EncodedRange, row: int) -> tuple[str, str]:
        """The shard's URL and the sample's key."""
        return self.index.where(held.shard), held.members.keys[held.first + row].as_py()

    def _member(self, held: EncodedRange, index: int, column: Column, extension: str) -> memoryview:
        offset, size, crc32 = int(column.offset[index]), int(column.size[index]), int(column.crc32[index])
        data = held.data[offset - held.begin : offset - held.begin + size]
        if zlib.crc32(data) == crc32 and len(data) == size:
            return data
        data = self._bytes(held.shard, offset, offset + size)  # a byte may have been flipped on the way here
        if zlib.crc32(data) == crc32 and len(data) == size:
            return data
        raise DataError(f"{extension} does not match its checksum: {self._blame(held.shard)}")

    def _blame(self, number: int) -> str:
        """Why the bytes of a shard are not those that were indexed."""
        part, _ = self.index.place(number)
        shard = self.index.shard(number)
        now = part.storage.stat(shard.name)
        if now is None:
            return "the shard is not there any longer"
        if now.size != shard.bytes:
            return f"the shard has {now.size} bytes, {shard.bytes} when it was indexed; if that is right, {part.remedy}"
        if now.etag != shard.etag:
            return f"the shard has changed since it was indexed; if that is right, {part.remedy}"
        return "the shard is damaged; write it anew"

    def _bytes(self, number: int, begin: int, end: int) -> memoryview:
        """The bytes [begin, end) of a shard; fewer, or none, if it is shorter or not there."""
        part, _ = self.index.place(number)
        name = self.index.name(number)
        try:
            data = part.storage.read_range(name, begin, end)
        except StorageError:
            now = part.storage.stat(name)
            if now is not None and now.size > begin:
                raise
            data = memoryview(b"")
        with self._lock:
            self.bytes_read += len(data)
        return data

    def _members(self, number: int) -> ShardMembers:
        with self._lock:
            members = self._shards.get(number)
        if members is None:
            members = _shard_members(self.index, number)
            with self._lock:
                self._shards[number] = members
                while len(self._shards) > _SHARDS_KEPT:
                    self._shards.popitem(last=False)
        return members


def _shard_members(index: Index, number: int) -> ShardMembers:
    table = index.members(number)
    names = {name.removesuffix(".offset") for name in table.column_names if name.endswith(".offset")}
    formats = sorted(names & IMAGE_FORMATS.keys())
    if not formats:
        raise DataError(f"{index.where(number)}: no images; known are {', '.join(IMAGE_FORMATS)}")
    columns = [_column(table, extension) for extension in formats]
    format = np.argmax([column.size for column in columns], axis=0)
    image = columns[0]
    if len(columns) > 1:
        stacked = [np.stack([column[field] for column in columns]) for field in range(3)]
        image = Column(*(values[format, np.arange(len(format))] for values in stacked))
    label = _column(table, LABEL) if LABEL in names else None
    return ShardMembers(table.column("key"), formats, format, image, label)


def _column(table: pa.Table, extension: str) -> Column:
    offset, size, crc32 = (table.column(f"{extension}.{field}") for field in ("offset", "size", "crc32"))
    return Column(
        offset.fill_null(0).to_numpy(),
        size.fill_null(-1).to_numpy(),
        crc32.fill_null(0).to_numpy().astype(np.int64),
    )
