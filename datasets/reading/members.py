"""The encoded images of a window: read in one range request a shard, cut out by the index, checked by CRC."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple
from zlib import crc32

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cluster.storage.errors import StorageError
from datasets.errors import DataError
from datasets.order.order import Range
from datasets.reading.decode import IMAGE_FORMATS, LABEL, LABEL_BYTES, Format, Pixels, decode_image, decode_label
from datasets.reading.disk_cache import DiskCache
from datasets.shards.index import Index
from datasets.shards.index_files import numbers

_LABELS_KEPT = 1 << 16  # texts
_SHARDS_KEPT = 64  # tables of members held: at least the streams' own shards are worth it


class Pieces(NamedTuple):
    """Where members lie in the bytes of a range, an item a sample; one that a sample lacks stops before it starts."""

    starts: list[int]
    stops: list[int]
    crc32: list[int]  # what it should be


class Column(NamedTuple):
    """Where the members of one kind lie in a shard, a row a sample; size -1 where a sample has none."""

    offset: NDArray[np.int64]
    size: NDArray[np.int64]
    crc32: NDArray[np.int64]

    def rows(self, rows: slice) -> Column:
        """Those of some samples."""
        return Column(*(values[rows] for values in self))

    def pieces(self, begin: int) -> Pieces:
        """Where they lie in the bytes of the shard from `begin` on."""
        starts = self.offset - begin
        return Pieces(starts.tolist(), (starts + self.size).tolist(), self.crc32.tolist())


class ShardMembers(NamedTuple):
    """The images and labels of a shard."""

    keys: pa.ChunkedArray
    formats: list[str]  # the extensions of images
    format: NDArray[np.int64]  # of each sample's image, a place in `formats`
    image: Column
    label: Column | None


@dataclass(frozen=True)
class EncodedRange:
    """Neighbouring samples of a shard, their bytes in one piece: a member is cut out when it is wanted.

    So is the table of where they lie: a thread that reads ahead is to take little of the interpreter's time.
    """

    shard: int
    rows: slice  # of the shard's samples
    begin: int  # where in the shard the bytes begin
    data: memoryview
    members: ShardMembers

    @cached_property
    def extensions(self) -> list[str]:
        """Of the images."""
        return [self.members.formats[i] for i in self.members.format[self.rows].tolist()]

    @cached_property
    def _images(self) -> Pieces:
        return self.members.image.rows(self.rows).pieces(self.begin)

    @cached_property
    def _labels(self) -> Pieces | None:
        label = self.members.label
        return label.rows(self.rows).pieces(self.begin) if label else None

    def image(self, row: int) -> tuple[memoryview, int]:
        """The encoded image of a sample and the checksum that it should have."""
        starts, stops, crcs = self._images
        return self.data[starts[row] : stops[row]], crcs[row]

    def label(self, row: int) -> tuple[memoryview, int] | None:
        """The label of a sample as it is written and the checksum that it should have; None if it has no label."""
        if self._labels is None:
            return None
        starts, stops, crcs = self._labels
        start, stop = starts[row], stops[row]
        return (self.data[start:stop], crcs[row]) if start <= stop else None


class MemberReader:
    """Reads ranges of samples from the shards of an index. Safe to use from several threads."""

    def __init__(self, index: Index, disk: DiskCache | None = None):
        """`disk` keeps blocks of the shards that do not lie on this machine."""
        self.index = index
        self.bytes_read = 0  # from the shards, not from the cache
        self._disk = disk
        self._lock = threading.Lock()
        self._labels: dict[bytes, int] = {}  # of those that have come: a few texts name all classes
        self._shards: OrderedDict[int, ShardMembers] = OrderedDict()

    def read(self, wanted: Range) -> EncodedRange:
        """The samples of a range, in one request. What the shard does not hold any longer is told sample by sample."""
        members = self._members(wanted.shard)
        rows = slice(wanted.start, wanted.stop)
        image, label = members.image.rows(rows), members.label and members.label.rows(rows)
        columns = [image, label] if label is not None and (label.size >= 0).any() else [image]
        begin = min(int(column.offset[column.size >= 0].min()) for column in columns)
        end = max(int((column.offset + column.size).max()) for column in columns)
        data = self._bytes(wanted.shard, begin, end)
        return EncodedRange(wanted.shard, rows, begin, data, members)

    def decode(self, held: EncodedRange, row: int, format: Format, out: Pixels | None = None) -> tuple[Pixels, int]:
        """The image of a sample, uint8 [H, W, C], in `out` perhaps (see `decode_image`), and its label (or 0).

        A member whose checksum is wrong is read anew: a byte may have been flipped on its way here. Raises `DataError`.
        """
        image, crc = held.image(row)
        extension = held.extensions[row]
        if crc32(image) != crc:
            image = self._again(held, row, extension)
        pixels = decode_image(image, extension, format, out)
        return pixels, self._label(held, row, format.classes) if format.classes else 0

    def _label(self, held: EncodedRange, row: int, classes: int) -> int:
        if (found := held.label(row)) is None:
            raise DataError(f"has no .cls member, but the set has {classes} classes")
        label, crc = found
        if crc32(label) != crc:
            label = self._again(held, row, LABEL)
        text = bytes(label[:LABEL_BYTES])
        if (known := self._labels.get(text)) is None:
            known = decode_label(text, classes)
            if len(self._labels) < _LABELS_KEPT:
                self._labels[text] = known
        return known

    def where(self, held: EncodedRange, row: int) -> tuple[str, str]:
        """The shard's URL and the sample's key."""
        return self.index.where(held.shard), held.members.keys[held.rows.start + row].as_py()

    def _again(self, held: EncodedRange, row: int, extension: str) -> memoryview:
        column = held.members.label if extension == LABEL else held.members.image
        assert column is not None
        index = held.rows.start + row
        offset, size = int(column.offset[index]), int(column.size[index])
        if (kept := self._kept(held.shard)) is not None:
            kept[0].forget(kept[1], offset, offset + size)
        data = self._fetched(held.shard, offset, offset + size)
        if len(data) == size and crc32(data) == int(column.crc32[index]):
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
        if (kept := self._kept(number)) is None:
            return self._fetched(number, begin, end)
        disk, name, size = kept
        return disk.read(name, begin, end, size, partial(self._fetched, number))

    def _kept(self, number: int) -> tuple[DiskCache, str, int] | None:
        """The cache, a shard's name in it and its bytes; None if the shard lies on this machine anyway."""
        part, _ = self.index.place(number)
        if self._disk is None or part.storage.local_path() is not None:
            return None
        shard = self.index.shard(number)
        return self._disk, DiskCache.name(self.index.where(number), shard.etag, shard.bytes, shard.crc32), shard.bytes

    def _fetched(self, number: int, begin: int, end: int) -> memoryview:
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
        numbers(offset),
        numbers(size, missing=-1),
        numbers(crc32).astype(np.int64),
    )
