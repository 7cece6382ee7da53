"""Encoded samples of shards: one range request for neighbours, members sliced out by the index, checked by CRC-32."""

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
from datasets.images.decode import IMAGE_FORMATS, LABEL, LABEL_BYTES, Format, Pixels, decode_image, decode_label
from datasets.order.order import Range
from datasets.reading.disk_cache import DiskCache
from datasets.shards.index import Index
from datasets.shards.index_files import numbers

_LABELS_KEPT = 1 << 16  # distinct label texts whose class is remembered
_SHARDS_KEPT = 64  # shards whose member tables are kept in memory


class Spans(NamedTuple):
    """Where members are in the bytes of a range, one item per sample; stop < start for a member that is missing."""

    starts: list[int]
    stops: list[int]
    crc32: list[int]  # expected


class Column(NamedTuple):
    """Where the members of one extension are in a shard, one row per sample; size -1 if a sample has none."""

    offset: NDArray[np.int64]
    size: NDArray[np.int64]
    crc32: NDArray[np.int64]

    def rows(self, rows: slice) -> Column:
        """The same for some samples."""
        return Column(*(values[rows] for values in self))

    def spans(self, begin: int) -> Spans:
        """Relative to byte `begin` of the shard."""
        starts = self.offset - begin
        return Spans(starts.tolist(), (starts + self.size).tolist(), self.crc32.tolist())


class ShardMembers(NamedTuple):
    """The images and labels of a shard, one row per sample."""

    keys: pa.ChunkedArray
    extensions: list[str]  # of images
    extension: NDArray[np.int64]  # of each sample's image: an index into `extensions`
    image: Column
    label: Column | None


@dataclass(frozen=True)
class EncodedRange:
    """Neighbouring samples of a shard in one buffer; members are sliced out when they are decoded.

    The spans are computed then, too: the read-ahead threads should hold the interpreter's lock as little as possible.
    """

    shard: int
    rows: slice  # of the shard's samples
    begin: int  # offset of `data` in the shard, bytes
    data: memoryview
    members: ShardMembers

    @cached_property
    def extensions(self) -> list[str]:
        """Of the images."""
        return [self.members.extensions[i] for i in self.members.extension[self.rows].tolist()]

    @cached_property
    def _images(self) -> Spans:
        return self.members.image.rows(self.rows).spans(self.begin)

    @cached_property
    def _labels(self) -> Spans | None:
        label = self.members.label
        return label.rows(self.rows).spans(self.begin) if label else None

    def image(self, row: int) -> tuple[memoryview, int]:
        """The encoded image of a sample and its expected CRC-32."""
        starts, stops, crcs = self._images
        return self.data[starts[row] : stops[row]], crcs[row]

    def label(self, row: int) -> tuple[memoryview, int] | None:
        """The .cls member of a sample and its expected CRC-32; None if it has none."""
        if self._labels is None:
            return None
        starts, stops, crcs = self._labels
        start, stop = starts[row], stops[row]
        return (self.data[start:stop], crcs[row]) if start <= stop else None


class ShardReader:
    """Reads and decodes samples of the shards of an index. Safe to use from several threads."""

    def __init__(self, index: Index, disk: DiskCache | None = None):
        """`disk` caches blocks of remote shards."""
        self.index = index
        self.bytes_read = 0  # from shards, not from the disk cache
        self._disk = disk
        self._lock = threading.Lock()
        self._labels: dict[bytes, int] = {}  # class by text
        self._shards: OrderedDict[int, ShardMembers] = OrderedDict()

    def read(self, wanted: Range) -> EncodedRange:
        """Fetch the samples of a range in one request. Missing bytes are reported when a sample is decoded."""
        members = self._members(wanted.shard)
        rows = slice(wanted.start, wanted.stop)
        image, label = members.image.rows(rows), members.label and members.label.rows(rows)
        columns = [image, label] if label is not None and (label.size >= 0).any() else [image]
        begin = min(int(column.offset[column.size >= 0].min()) for column in columns)
        end = max(int((column.offset + column.size).max()) for column in columns)
        data = self._bytes(wanted.shard, begin, end)
        return EncodedRange(wanted.shard, rows, begin, data, members)

    def decode(self, held: EncodedRange, row: int, format: Format, out: Pixels | None = None) -> tuple[Pixels, int]:
        """The image of a sample, uint8 [H, W, C], in `out` if possible (see `decode_image`), and its label (or 0).

        A member whose CRC does not match is fetched once more: a byte may have been flipped in transit. Raises
        `DataError`.
        """
        image, crc = held.image(row)
        extension = held.extensions[row]
        if crc32(image) != crc:
            image = self._fetch_again(held, row, extension)
        pixels = decode_image(image, extension.rpartition(".")[2], format, out)
        return pixels, self._label(held, row, format.classes) if format.classes else 0

    def _label(self, held: EncodedRange, row: int, classes: int) -> int:
        if (found := held.label(row)) is None:
            raise DataError(f"no .cls member, but the set has {classes} classes")
        label, crc = found
        if crc32(label) != crc:
            label = self._fetch_again(held, row, LABEL)
        text = bytes(label[:LABEL_BYTES])
        if (known := self._labels.get(text)) is None:
            known = decode_label(text, classes)
            if len(self._labels) < _LABELS_KEPT:
                self._labels[text] = known
        return known

    def where(self, held: EncodedRange, row: int) -> tuple[str, str]:
        """The shard's URL and the sample's key."""
        return self.index.where(held.shard), held.members.keys[held.rows.start + row].as_py()

    def _fetch_again(self, held: EncodedRange, row: int, extension: str) -> memoryview:
        column = held.members.label if extension == LABEL else held.members.image
        assert column is not None
        index = held.rows.start + row
        offset, size = int(column.offset[index]), int(column.size[index])
        if (cached := self._disk_entry(held.shard)) is not None:
            cached[0].forget(cached[1], offset, offset + size)
        data = self._fetch(held.shard, offset, offset + size)
        if len(data) == size and crc32(data) == int(column.crc32[index]):
            return data
        raise DataError(f"{extension} does not match its checksum: {self._why_changed(held.shard)}")

    def _why_changed(self, number: int) -> str:
        """Why the bytes of a shard differ from those that were indexed, and the remedy."""
        folder, _ = self.index.folder_of(number)
        shard = self.index.shard(number)
        now = folder.storage.stat(shard.name)
        if now is None:
            return "the shard no longer exists"
        if now.size != shard.bytes:
            sizes = f"the shard has {now.size} bytes, {shard.bytes} when it was indexed"
            return f"{sizes}; if it was replaced, {folder.remedy}"
        if now.etag != shard.etag:
            return f"the shard has changed since it was indexed; if it was replaced, {folder.remedy}"
        return "the shard is damaged; write it again"

    def _bytes(self, number: int, begin: int, end: int) -> memoryview:
        """The bytes [begin, end) of a shard; fewer, or none, if it is shorter or missing."""
        if (cached := self._disk_entry(number)) is None:
            return self._fetch(number, begin, end)
        disk, name, size = cached
        return disk.read(name, begin, end, size, partial(self._fetch, number))

    def _disk_entry(self, number: int) -> tuple[DiskCache, str, int] | None:
        """The disk cache, the shard's name in it and its size in bytes; None without a cache or for a local shard."""
        folder, _ = self.index.folder_of(number)
        if self._disk is None or folder.storage.local_path() is not None:
            return None
        shard = self.index.shard(number)
        return self._disk, DiskCache.name(self.index.where(number), shard.etag, shard.bytes, shard.crc32), shard.bytes

    def _fetch(self, number: int, begin: int, end: int) -> memoryview:
        folder, _ = self.index.folder_of(number)
        name = self.index.name(number)
        try:
            data = folder.storage.read_range(name, begin, end)
        except StorageError:
            now = folder.storage.stat(name)
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
    chosen = index.folder_of(number)[0].meta.image
    extensions = sorted(names.intersection((chosen,) if chosen else IMAGE_FORMATS))
    if not extensions:
        raise DataError(f"{index.where(number)}: no images; supported formats: {', '.join(IMAGE_FORMATS)}")
    columns = [_column(table, extension) for extension in extensions]
    extension = np.argmax([column.size for column in columns], axis=0)
    image = columns[0]
    if len(columns) > 1:
        stacked = [np.stack([column[field] for column in columns]) for field in range(3)]
        image = Column(*(values[extension, np.arange(len(extension))] for values in stacked))
    label = _column(table, LABEL) if LABEL in names else None
    return ShardMembers(table.column("key"), extensions, extension, image, label)


def _column(table: pa.Table, extension: str) -> Column:
    offset, size, crc32 = (table.column(f"{extension}.{field}") for field in ("offset", "size", "crc32"))
    return Column(numbers(offset), numbers(size, missing=-1), numbers(crc32).astype(np.int64))
