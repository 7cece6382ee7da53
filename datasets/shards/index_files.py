"""The files of an index: their tables, read and written. docs/index-format.md describes them.

<folder>/index/index.json           the format of the images
<folder>/index/shards.arrow         one row per shard: name, images, bytes, etag, crc32 (of its members' checksums), ...
<folder>/index/members/NAME.arrow   one row per sample of shard NAME: key, and offset, size and crc32 by extension
<folder>/index/columns/NAME.arrow   one row per sample of shard NAME: key, width, height, ... (sample_columns.py)
<folder>/index/columns.arrow        no rows: the names and types of these columns over all shards
<folder>/index/quarantine.arrow     one row per sample that cannot be used: shard, key, reason
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from shlex import quote
from typing import NamedTuple, TypeVar

import numpy as np
import pyarrow as pa

from cluster.storage.errors import MissingError, StorageError, TooLargeError
from cluster.storage.json_files import MOST_JSON_BYTES, parse_json
from cluster.storage.storage import Storage, is_local, join
from datasets.errors import DataError
from datasets.images.decode import Format
from datasets.shards.columns import numbers
from datasets.shards.labels import LabelSource
from datasets.shards.table_checks import check_shards

T = TypeVar("T")
VERSION = 1
QUARANTINE = "quarantine.arrow"
_SCHEMA_FILE = "columns.arrow"
MOST_TABLE_BYTES = 2 << 30  # of a table that is read whole
PACKED_SPLITS = ("train", "validation", "test")  # folders that packing writes into, each a set of its own
SCHEMA = pa.schema(
    [
        ("name", pa.string()),  # relative to the folder
        ("images", pa.int64()),
        ("bytes", pa.int64()),
        ("etag", pa.string()),  # of the object when it was indexed
        ("crc32", pa.uint32()),  # of the keys, sizes and CRCs of its members
        ("channels", pa.int32()),  # the largest number of any of its images
        ("height", pa.int32()),  # pixels, of all its images; 0: they differ
        ("width", pa.int32()),
        ("classes", pa.int64()),  # the largest label + 1; 0: no labels
        ("grey", pa.int64()),  # images with one channel
        ("grey_key", pa.string()),  # key of the first of these; "" if there is none
        ("colour_key", pa.string()),  # key of the first of the others
        ("quarantined", pa.int64()),  # samples that cannot be used
        ("skipped", pa.int64()),  # files that belong to no sample
        ("read_bytes", pa.int64()),  # that an epoch reads of it: `bytes`, or fewer of a selection
    ]
)
_COLOURS, _ACCOUNT, _READ = 9, 12, 14  # number of columns of older indexes, without those from there on
QUARANTINE_SCHEMA = pa.schema(
    [
        ("shard", pa.string()),  # relative to the folder
        ("key", pa.string()),  # "": the shard from some byte on
        ("reason", pa.string()),
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
    grey: int
    grey_key: str
    colour_key: str
    quarantined: int = 0
    skipped: int = 0
    read_bytes: int = 0


class Meta(NamedTuple):
    """The format of a set's images, as index.json has it."""

    channels: int
    height: int  # 0: the images differ in size; a run has to crop or resize them
    width: int
    levels: int = 256
    classes: int = 0
    class_names: tuple[str, ...] = ()
    binarised: str = ""  # "static" or "stochastic", for sets that were binarised
    source: str = ""  # where the images come from, for a reader
    image: str = ""  # extension of the images, where samples have several; "": the only one of each sample
    columns: tuple[str, ...] = ()  # that were requested besides those of every index: see `ScanOptions.columns`
    labels: LabelSource = LabelSource()
    selection: str = ""  # how it was selected from another index, for a person; "": it was not

    @property
    def format(self) -> Format:
        """The part that a decoder needs."""
        return Format(self.channels, self.height, self.width, self.levels, self.classes)


def member_file(shard: str) -> str:
    """The file name of a shard's member table below index/members/."""
    return f"{shard}.arrow"


def read_index(url: str, location: str) -> tuple[Meta, pa.Table]:
    """index.json and the table of shards at `location`. Raises `DataError` if they are missing or damaged."""
    try:
        return twice_from_a_store(location, lambda: (read_meta(location), read_shards(url, location)))
    except MissingError as error:
        raise DataError(_missing(url, location)) from error


def read_meta(location: str) -> Meta:
    """The content of index.json. Raises `MissingError`, or `DataError` if it is damaged."""
    try:
        return _meta(Storage(location).read("index.json", MOST_JSON_BYTES), location)
    except TooLargeError as error:
        raise DataError(f"{error}; run python -m jobs.index again") from error


def read_shards(url: str, location: str) -> pa.Table:
    """The table of shards: `SCHEMA`. Raises `MissingError`, or `DataError` if it is damaged."""
    table = _with_added_columns(read_table(Storage(location), "shards.arrow"))
    try:
        if not table.schema.equals(SCHEMA):
            raise ValueError("not a table of shards")
        check_shards(table)
    except ValueError as error:
        damage = f"{location}/shards.arrow: damaged ({error})"
        raise DataError(f"{damage}; run python -m jobs.index {quote(url)}") from error
    return table


def _with_added_columns(table: pa.Table) -> pa.Table:
    """An older table with the columns it lacks: of the colours of a shard it has only the number of channels."""
    zeros = np.zeros(table.num_rows, dtype=np.int64)
    if table.schema.equals(pa.schema(list(SCHEMA)[:_COLOURS])):
        grey = np.where(numbers(table.column("channels")) == 1, numbers(table.column("images")), 0)
        for field, values in zip(
            list(SCHEMA)[_COLOURS:_ACCOUNT], (grey, [""] * len(grey), [""] * len(grey)), strict=True
        ):
            table = table.append_column(field, pa.array(values, field.type))
    if table.schema.equals(pa.schema(list(SCHEMA)[:_ACCOUNT])):
        for field in list(SCHEMA)[_ACCOUNT:_READ]:
            table = table.append_column(field, pa.array(zeros, field.type))
    if table.schema.equals(pa.schema(list(SCHEMA)[:_READ])):
        table = table.append_column(SCHEMA[_READ], table.column("bytes"))
    return table


def write_index(
    location: Storage, meta: Meta, shards: Sequence[Shard], quarantine: pa.Table, columns: pa.Schema
) -> None:
    """Write the tables of shards and of the quarantine, then index.json: without it there is no index."""
    location.write(_SCHEMA_FILE, encode_table(columns.empty_table()))
    location.write("shards.arrow", encode_table(shard_table(shards)))
    location.write(QUARANTINE, encode_table(quarantine))
    location.write("index.json", (json.dumps({"version": VERSION} | meta._asdict(), indent=1) + "\n").encode())


def shard_table(shards: Sequence[Shard]) -> pa.Table:
    """Rows of the index as a table."""
    columns = [pa.array([shard[i] for shard in shards], field.type) for i, field in enumerate(SCHEMA)]
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def shards_of(table: pa.Table) -> dict[str, Shard]:
    """The rows of a table of shards, by name."""
    return {row["name"]: Shard(**row) for row in table.to_pylist()}


def read_quarantine(location: str) -> pa.Table:
    """The samples that were quarantined by indexing: shard, key, reason. Empty for an index without such a table."""
    try:
        table = read_table(Storage(location), QUARANTINE)
    except MissingError:
        return QUARANTINE_SCHEMA.empty_table()
    if not table.schema.equals(QUARANTINE_SCHEMA):
        raise DataError(f"{location}/{QUARANTINE}: not a table of quarantined samples; run python -m jobs.index again")
    return table


def read_schema(location: str) -> pa.Schema:
    """The columns of the samples, with types that fit all shards. Raises `MissingError`, or `DataError`."""
    return read_table(Storage(location), _SCHEMA_FILE).schema


def encode_table(table: pa.Table) -> bytes:
    """A table as an Arrow IPC file."""
    stream = pa.BufferOutputStream()
    with pa.ipc.new_file(stream, table.schema) as writer:
        writer.write_table(table)
    data: bytes = stream.getvalue().to_pybytes()
    return data


def twice_from_a_store(url: str, read: Callable[[], T]) -> T:
    """`read()`; once more if it raises DataError and `url` is in a store: a byte may have been flipped in transit."""
    try:
        return read()
    except DataError:
        if is_local(url):
            raise
        return read()


def read_table(storage: Storage, path: str) -> pa.Table:
    """A table from an Arrow IPC file: memory-mapped from a local disk. Raises `DataError` if it is damaged.

    Its buffers fit its columns, and its strings are UTF-8: Arrow itself reads a file without looking at the contents,
    and crashes where crafted offsets point outside its memory.
    """
    local = storage.local_path(path)
    try:
        if local is None:
            source = pa.BufferReader(storage.read(path, MOST_TABLE_BYTES))
        elif local.is_file():
            source = pa.memory_map(str(local))
        else:
            raise MissingError(f"{local}: no such file")
        table = pa.ipc.open_file(source).read_all()
        table.validate(full=True)
        return table
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and (isinstance(error, StorageError) or error.errno):
            raise  # of the disk or the store; Arrow's own have no number
        raise DataError(f"{join(storage.url, path)}: damaged; run python -m jobs.index again") from error


def _meta(data: bytes, location: str) -> Meta:
    try:
        fields = parse_json(data)
        version = fields.pop("version")
        if version != VERSION:
            raise DataError(f"{location}/index.json has version {version!r}; this program reads version {VERSION}")
        lists = {name: tuple(fields[name]) for name in _LISTS if name in fields}
        meta = _checked(Meta(**fields | lists))
        place, named = meta.labels
        if not isinstance(place, str) or type(named) is not bool:
            raise ValueError("labels: not where labels are")
        return meta._replace(labels=LabelSource(place, named))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        reason = " ".join(f"{error}".split())[:200]
        raise DataError(f"{location}/index.json: damaged ({reason}); run python -m jobs.index again") from error


_LISTS = ("class_names", "columns")  # fields of `Meta` with several values


def _checked(meta: Meta) -> Meta:
    """Raises ValueError for values that no set has."""
    limits = {"channels": (1, 1 << 16), "height": (0, 1 << 31), "width": (0, 1 << 31), "levels": (2, 1 << 16)}
    limits["classes"] = (0, 1 << 62)
    for name, value in meta._asdict().items():
        if name in limits:
            least, most = limits[name]
            if type(value) is not int or not least <= value <= most:
                raise ValueError(f"{name}: {str(value)[:50]!r} is not an integer from {least} to {most}")
        elif name != "labels" and not all(isinstance(text, str) for text in (value if name in _LISTS else [value])):
            raise ValueError(f"{name}: {str(value)[:50]!r} is not text")
    if meta.class_names and len(meta.class_names) > meta.classes:
        raise ValueError(f"class_names: {len(meta.class_names)} names of {meta.classes} classes")
    return meta


def _missing(url: str, location: str) -> str:
    if location == join(url, "index"):
        if Storage(url).exists("index.json"):
            return f"{url}: is an index, not a folder of shards: name it with data.index (--index), and its shards here"
        if next(Storage(url).list(), None) is None:
            return f"{url}: no such folder, or it is empty; data.shards names a folder of .tar shards"
        if sets := [name for name in PACKED_SPLITS if Storage(url).exists(f"{name}/index/index.json")]:
            return f"{url}: holds {', '.join(sets)}, each a set with its own index; give one of them: {url}/{sets[0]}"
    return (
        f"{url}: no index of the shards at {location}; make it with: python -m jobs.index {quote(url)} (an index "
        "elsewhere is named by data.index, data.validation_index or --index)"
    )
