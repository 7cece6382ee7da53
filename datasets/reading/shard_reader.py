"""Encoded samples of shards: one range request for neighbours, members sliced out by the index, checked by CRC-32."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple
from zlib import crc32

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cluster.storage.errors import StorageError
from cluster.storage.storage import Storage, join
from datasets.errors import DataError
from datasets.images.decode import IMAGE_FORMATS, Format, Pixels, decode_image, decode_reduced
from datasets.order.order import Range
from datasets.reading.disk_cache import DiskCache
from datasets.shards.columns import extensions_of, numbers
from datasets.shards.encoded import REMEDY
from datasets.shards.index import Index
from datasets.shards.joined import Join

_CLOSE = 1 << 16  # bytes between two members that are read rather than making another request
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


class Pieces:
    """Parts of a shard, which are sliced as one buffer that begins at byte `begin` of the shard would be."""

    def __init__(self, begin: int, pieces: Sequence[tuple[int, int, memoryview]]):
        """`pieces`: (start, stop, bytes) in order, of the shard."""
        self._starts = [start - begin for start, _, _ in pieces]
        self._data = [data for _, _, data in pieces]

    def __getitem__(self, where: slice) -> memoryview:
        """The bytes of a slice inside one of the pieces; fewer if the shard is shorter."""
        number = bisect_right(self._starts, where.start) - 1
        begin = self._starts[number]
        return self._data[number][where.start - begin : where.stop - begin]


def join_spans(columns: Iterable[Column]) -> list[tuple[int, int]]:
    """The parts of a shard that hold the members of some columns, in order; members that are close are in one part."""
    spans = sorted(
        (offset, offset + size)
        for column in columns
        for offset, size in zip(column.offset.tolist(), column.size.tolist(), strict=True)
        if size >= 0
    )
    joined = [spans[0]]
    for start, stop in spans[1:]:
        if start - joined[-1][1] <= _CLOSE:
            joined[-1] = joined[-1][0], max(stop, joined[-1][1])
        else:
            joined.append((start, stop))
    return joined


def parts_to_read(columns: Sequence[Column]) -> list[tuple[int, int]]:
    """The ranges of a shard that are fetched for some samples: one, or several if their members are far apart.

    `columns` are those of these samples, each with a member that is there.
    """
    begin = min(int(column.offset[column.size >= 0].min()) for column in columns)
    end = max(int((column.offset + column.size).max()) for column in columns)
    needed = sum(int(column.size[column.size >= 0].sum()) for column in columns)
    if end - begin > 2 * needed + _CLOSE * (1 + len(columns[0].size)):
        return join_spans(columns)
    return [(begin, end)]


class ShardFile(NamedTuple):
    """A tar as it was when it was indexed."""

    storage: Storage
    name: str
    bytes: int
    etag: str
    crc32: int  # of its contents
    remedy: str  # where it was replaced

    @property
    def url(self) -> str:
        return join(self.storage.url, self.name)


class Located(NamedTuple):
    """Members of a shard's samples in one tar, by extension, one row per sample."""

    file: ShardFile
    columns: dict[str, Column]


class ShardMembers(NamedTuple):
    """The images of a shard and the other members that are read, one row per sample."""

    keys: pa.ChunkedArray
    extensions: list[str]  # of images
    extension: NDArray[np.int64]  # of each sample's image: an index into `extensions`
    image: Column
    own: Located  # in the shard itself, without the images
    joined: list[Located]  # in encoded shards


@dataclass(frozen=True)
class HeldMembers:
    """Members of neighbouring samples that have been read."""

    located: Located
    rows: slice  # of the shard's samples
    begin: int  # offset of `data` in the tar, bytes
    data: memoryview | Pieces

    @cached_property
    def spans(self) -> dict[str, Spans]:
        """By extension."""
        return {name: column.rows(self.rows).spans(self.begin) for name, column in self.located.columns.items()}


@dataclass(frozen=True)
class EncodedRange:
    """Neighbouring samples of a shard in one buffer; members are sliced out when they are decoded.

    The spans are computed then, too: the read-ahead threads should hold the interpreter's lock as little as possible.
    """

    shard: int
    rows: slice  # of the shard's samples
    begin: int  # offset of `data` in the shard, bytes
    data: memoryview | Pieces
    members: ShardMembers
    held: list[HeldMembers]  # the members besides the images: of the shard itself, then of encoded shards

    @cached_property
    def extensions(self) -> list[str]:
        """Of the images."""
        return [self.members.extensions[i] for i in self.members.extension[self.rows].tolist()]

    @cached_property
    def _images(self) -> Spans:
        return self.members.image.rows(self.rows).spans(self.begin)

    def image(self, row: int) -> tuple[memoryview, int]:
        """The encoded image of a sample and its expected CRC-32."""
        starts, stops, crcs = self._images
        return self.data[starts[row] : stops[row]], crcs[row]

    def member(self, row: int, extension: str) -> tuple[memoryview, int, Located] | None:
        """Another member of a sample, its expected CRC-32 and where it is; None if it has none."""
        for held in self.held:
            if (spans := held.spans.get(extension)) is not None:
                start, stop = spans.starts[row], spans.stops[row]
                return (held.data[start:stop], spans.crc32[row], held.located) if start <= stop else None
        return None


class ShardReader:
    """Reads and decodes samples of the shards of an index. Safe to use from several threads."""

    def __init__(self, index: Index, disk: DiskCache | None = None, members: Collection[str] = ()):
        """`disk` caches blocks of remote shards. `members`: extensions that are read besides the images."""
        self.index = index
        self.extensions = frozenset(members)
        self.bytes_read = 0  # from shards, not from the disk cache
        self._disk = disk
        self._lock = threading.Lock()
        self._shards: OrderedDict[int, ShardMembers] = OrderedDict()

    def read(self, wanted: Range) -> EncodedRange:
        """Fetch the samples of a range in one request, or in several if their members are far apart.

        Missing bytes are reported when a sample is decoded.
        """
        members = self._members(wanted.shard)
        rows = slice(wanted.start, wanted.stop)
        own = members.own
        others = (column.rows(rows) for column in own.columns.values())
        begin, data = self._read(own.file, [members.image.rows(rows), *others])
        held = [HeldMembers(own, rows, begin, data)]
        for joined in members.joined:
            columns = [column.rows(rows) for column in joined.columns.values()]
            held.append(HeldMembers(joined, rows, *self._read(joined.file, columns)))
        return EncodedRange(wanted.shard, rows, begin, data, members, held)

    def _read(self, file: ShardFile, columns: list[Column]) -> tuple[int, memoryview | Pieces]:
        """The bytes that hold the members of some columns, and where in the tar they begin."""
        columns = [column for column in columns if (column.size >= 0).any()]
        if not columns:
            return 0, memoryview(b"")
        parts = parts_to_read(columns)
        begin = parts[0][0]
        data = [self._bytes(file, *part) for part in parts]
        if len(parts) == 1:
            return begin, data[0]
        return begin, Pieces(begin, [(*part, some) for part, some in zip(parts, data, strict=True)])

    def decode(self, held: EncodedRange, row: int, format: Format, out: Pixels | None = None) -> Pixels:
        """The image of a sample, uint8 [H, W, C], in `out` if possible (see `decode_image`).

        A member whose CRC does not match is fetched once more: a byte may have been flipped in transit. Raises
        `DataError`.
        """
        return decode_image(*self._image(held, row), format, out)

    def decode_reduced(
        self, held: EncodedRange, row: int, format: Format, least: Callable[[int, int], tuple[int, int] | None]
    ) -> tuple[Pixels, tuple[int, int]]:
        """The image of a sample, maybe reduced, and the (height, width) that it has: see `decode_reduced`."""
        return decode_reduced(*self._image(held, row), format, least)

    def _image(self, held: EncodedRange, row: int) -> tuple[memoryview, str]:
        """The encoded image of a sample, checked, and the extension of its format."""
        image, crc = held.image(row)
        extension = held.extensions[row]
        if crc32(image) != crc:
            image = self._fetch_again(held, row, held.members.own.file, held.members.image, extension)
        return image, extension.rpartition(".")[2]

    def member(self, held: EncodedRange, row: int, extension: str) -> memoryview | None:
        """The bytes of another member, checked as those of an image are; None: the sample has none."""
        if (found := held.member(row, extension)) is None:
            return None
        data, crc, located = found
        if crc32(data) != crc:
            return self._fetch_again(held, row, located.file, located.columns[extension], extension)
        return data

    def where(self, held: EncodedRange, row: int) -> tuple[str, str]:
        """The shard's URL and the sample's key."""
        return self.index.where(held.shard), held.members.keys[held.rows.start + row].as_py()

    def _fetch_again(self, held: EncodedRange, row: int, file: ShardFile, column: Column, extension: str) -> memoryview:
        index = held.rows.start + row
        offset, size = int(column.offset[index]), int(column.size[index])
        if (disk := self._disk_of(file)) is not None:
            disk.forget(_name_on_disk(file), offset, offset + size)
        data = self._fetch(file, offset, offset + size)
        if len(data) == size and crc32(data) == int(column.crc32[index]):
            return data
        raise DataError(f"{extension} does not match its checksum: {_why_changed(file)}")

    def _bytes(self, file: ShardFile, begin: int, end: int) -> memoryview:
        """The bytes [begin, end) of a tar; fewer, or none, if it is shorter or missing."""
        if (disk := self._disk_of(file)) is None:
            return self._fetch(file, begin, end)
        return disk.read(_name_on_disk(file), begin, end, file.bytes, partial(self._fetch, file))

    def _disk_of(self, file: ShardFile) -> DiskCache | None:
        """The disk cache; None without one or for a local tar."""
        return self._disk if file.storage.local_path() is None else None

    def _fetch(self, file: ShardFile, begin: int, end: int) -> memoryview:
        try:
            data = file.storage.read_range(file.name, begin, end)
        except StorageError:
            now = file.storage.stat(file.name)
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
            members = _shard_members(self.index, number, self.extensions)
            with self._lock:
                self._shards[number] = members
                while len(self._shards) > _SHARDS_KEPT:
                    self._shards.popitem(last=False)
        return members


def image_crcs(index: Index, number: int) -> NDArray[np.int64]:
    """The CRC-32 of each image of a shard, as the index has it."""
    return _shard_members(index, number, ()).image.crc32


def _shard_members(index: Index, number: int, others: Collection[str]) -> ShardMembers:
    table = index.members(number)
    names = extensions_of(table)
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
    own = Located(_shard_file(index, number), {name: _column(table, name) for name in sorted(names & {*others})})
    joined = _joined(index, number, table, image, sorted({*others} - names))
    return ShardMembers(table.column("key"), extensions, extension, image, own, joined)


def _joined(index: Index, number: int, table: pa.Table, image: Column, wanted: list[str]) -> list[Located]:
    """The members of encoded shards with the extensions `wanted`. Raises `DataError` if they are of other samples."""
    found: dict[Join, list[str]] = {}
    for extension in wanted:
        if (source := index.joins.of(number, extension)) is not None:
            found.setdefault(source, []).append(extension)
    located = []
    for source, extensions in found.items():
        encoded = source.encoded
        try:
            aligned = source.aligned(number, table, image.crc32)
        except DataError as error:
            raise DataError(f"{index.where(number)}: {error}") from error
        shard = encoded.shard(int(source.rows[number]))
        file = ShardFile(encoded.storage, shard.name, shard.bytes, shard.etag, shard.crc32, REMEDY)
        there = extensions_of(aligned)
        located.append(Located(file, {name: _column(aligned, name) for name in extensions if name in there}))
    return located


def _shard_file(index: Index, number: int) -> ShardFile:
    folder, shard = index.folder_of(number)[0], index.shard(number)
    return ShardFile(folder.storage, shard.name, shard.bytes, shard.etag, shard.crc32, folder.remedy)


def _name_on_disk(file: ShardFile) -> str:
    return DiskCache.name(file.url, file.etag, file.bytes, file.crc32)


def _why_changed(file: ShardFile) -> str:
    """Why the bytes of a tar differ from those that were indexed, and the remedy."""
    now = file.storage.stat(file.name)
    if now is None:
        return "the shard no longer exists"
    if now.size != file.bytes:
        sizes = f"the shard has {now.size} bytes, {file.bytes} when it was indexed"
        return f"{sizes}; if it was replaced, {file.remedy}"
    if now.etag != file.etag:
        return f"the shard has changed since it was indexed; if it was replaced, {file.remedy}"
    return "the shard is damaged; write it again"


def member_columns(table: pa.Table) -> dict[str, Column]:
    """The columns of a member table, by extension."""
    return {extension: _column(table, extension) for extension in sorted(extensions_of(table))}


def _column(table: pa.Table, extension: str) -> Column:
    offset, size, crc32 = (table.column(f"{extension}.{field}") for field in ("offset", "size", "crc32"))
    return Column(numbers(offset), numbers(size, missing=-1), numbers(crc32).astype(np.int64))
