"""Encoded shards: what an encoder made of the samples of a set, a shard for each of the set's, members named by key.

<url>/encoding.json         what made them: encoder, hash, options; written first, and again at the end
<url>/shards.arrow          one row per shard: see `SCHEMA`; written at the end
<url>/NAME                  a tar with the arrays of shard NAME of the set: KEY.FIELD.npy
<url>/columns/NAME.arrow    its scalars, a column table
<url>/members/NAME.arrow    key, source (see `source_crcs`), and offset, size and crc32 by extension; written last
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

from cluster.storage.errors import MissingError, TooLargeError
from cluster.storage.json_files import MOST_JSON_BYTES, parse_json
from cluster.storage.storage import Storage, join
from datasets.errors import DataError
from datasets.shards.columns import extensions_of, numbers
from datasets.shards.index_files import encode_table, read_table, twice_from_a_store
from datasets.shards.table_checks import check_members

VERSION = 1
DESCRIPTION, SHARDS, MEMBERS = "encoding.json", "shards.arrow", "members"
SOURCE = "source"  # column of a member table
SUFFIX = ".npy"
SCHEMA = pa.schema(
    [
        ("name", pa.string()),  # of the set's shard, relative to its folder; and of the tar here
        ("samples", pa.int64()),  # with a row
        ("bad", pa.int64()),  # samples that were left out: corrupt, or refused by the encoder
        ("bytes", pa.int64()),  # of the tar; 0: there is none, all fields are scalars
        ("etag", pa.string()),  # of the tar
        ("crc32", pa.uint32()),  # of keys, members and scalars: the identity of the contents
        ("source_crc32", pa.uint32()),  # of the set's shard, as its index has it
    ]
)
_STEP = np.uint32(0x9E3779B1)
_RECORD = b"shard"  # metadata of a member table


class EncodedShard(NamedTuple):
    """A row of `SCHEMA`."""

    name: str
    samples: int
    bad: int
    bytes: int
    etag: str
    crc32: int
    source_crc32: int


class ShardRecord(NamedTuple):
    """What the member table of an encoded shard says of it as a whole."""

    shard: EncodedShard
    hash: str  # of the encoder
    fields: dict[str, str]  # by name: "array" or "scalar"
    bad: list[list[str]]  # [key, reason] of the samples that were left out


class Reads(NamedTuple):
    """What an encoder reads of a sample."""

    image: bool
    members: tuple[str, ...]  # extensions


def source_crcs(members: pa.Table, image: NDArray[np.int64], reads: Reads) -> NDArray[np.uint32]:
    """uint32 [n]: for each sample a checksum of what an encoder read of it.

    `members`: the member table of the set's shard; `image`: the CRC-32 of each sample's image.
    """
    total = np.zeros(members.num_rows, dtype=np.uint32)
    there = extensions_of(members)
    columns = [image.astype(np.uint32)] if reads.image else []
    for extension in reads.members:
        if extension in there:
            columns.append(numbers(members.column(f"{extension}.crc32")).astype(np.uint32))
    for column in columns:
        total = total * _STEP + column
    return total


def write_record(storage: Storage, table: pa.Table, record: ShardRecord) -> None:
    """Write the member table of a shard, which makes it complete."""
    text = json.dumps([tuple(record.shard), *record[1:]])
    table = table.replace_schema_metadata({_RECORD: text})
    storage.folder(MEMBERS).write(f"{record.shard.name}.arrow", encode_table(table))


def read_record(storage: Storage, name: str) -> tuple[pa.Table, ShardRecord]:
    """The member table of a shard and its record. Raises `MissingError`, or `DataError` if it is damaged."""
    table = read_table(storage.folder(MEMBERS), f"{name}.arrow")
    try:
        shard, *rest = json.loads((table.schema.metadata or {})[_RECORD])
        record = ShardRecord(EncodedShard(*shard), *rest)
        if table.schema.names[:2] != ["key", SOURCE] or table.schema.types[1] != pa.uint32():
            raise ValueError("its columns are not those of encoded shards")
        check_members(table.drop_columns(SOURCE).replace_schema_metadata(), record.shard.bytes)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{join(storage.url, MEMBERS, name)}.arrow: damaged ({error})") from error
    return table, record


def write_shards(storage: Storage, shards: Iterable[EncodedShard]) -> None:
    """Write the table of shards."""
    rows = list(shards)
    columns = [pa.array([row[i] for row in rows], field.type) for i, field in enumerate(SCHEMA)]
    storage.write(SHARDS, encode_table(pa.Table.from_arrays(columns, schema=SCHEMA)))


def write_description(storage: Storage, description: dict[str, Any]) -> None:
    """Write what made the shards."""
    storage.write(DESCRIPTION, (json.dumps({"version": VERSION} | description, indent=1) + "\n").encode())


def read_description(storage: Storage) -> dict[str, Any]:
    """What made the shards. Raises `MissingError`, or `DataError` if it cannot be read."""
    try:
        description = parse_json(storage.read(DESCRIPTION, MOST_JSON_BYTES))
        if description["version"] != VERSION:
            raise ValueError(f"version {description['version']!r}; this program reads version {VERSION}")
        for name, kind in (("encoder", dict), ("reads", list), ("fields", dict), ("complete", bool), ("set", str)):
            if not isinstance(description[name], kind):
                raise ValueError(f"{name} is not of the right type")
    except (ValueError, KeyError, TypeError, TooLargeError) as error:
        raise DataError(f"{join(storage.url, DESCRIPTION)}: damaged ({error})") from error
    return dict(description)


class EncodedShards:
    """The encoded shards at a URL. Opening them is O(shards). Raises `DataError`."""

    def __init__(self, url: str):
        self.storage = Storage(url)
        self.url = self.storage.url
        try:
            self.description = twice_from_a_store(self.url, lambda: read_description(self.storage))
            if not self.description["complete"]:
                raise DataError(f"{self.url}: the job that encodes these shards has not ended; run it again")
            self.table = twice_from_a_store(self.url, self._read_table)
        except MissingError as error:
            raise DataError(f"{self.url}: no encoded shards here; python -m jobs.encode writes them") from error

    def _read_table(self) -> pa.Table:
        table = read_table(self.storage, SHARDS)
        if not table.schema.equals(SCHEMA) or any(table.column(name).null_count for name in SCHEMA.names):
            raise DataError(f"{self.url}/{SHARDS}: not a table of encoded shards; run python -m jobs.encode again")
        return table.combine_chunks()

    @cached_property
    def reads(self) -> Reads:
        """What the encoder read of a sample."""
        return Reads(bool(self.description.get("image", True)), tuple(self.description["reads"]))

    @cached_property
    def extensions(self) -> frozenset[str]:
        """Of the members in the tars."""
        return frozenset(f"{name}{SUFFIX}" for name, kind in self.description["fields"].items() if kind == "array")

    @property
    def hash(self) -> str:
        """Of the encoder."""
        return str(self.description["encoder"].get("hash"))

    @cached_property
    def bytes_per_sample(self) -> float:
        """Mean bytes per sample, in the shard where that is largest."""
        samples, size = numbers(self.table.column("samples")), numbers(self.table.column("bytes"))
        full = samples > 0
        return float((size[full] / samples[full]).max(initial=0))

    def shard(self, row: int) -> EncodedShard:
        """A row of the table."""
        return EncodedShard(**{name: self.table.column(name)[row].as_py() for name in SCHEMA.names})

    def members(self, row: int) -> pa.Table:
        """The member table of a shard."""
        shard = self.shard(row)
        try:
            table, record = twice_from_a_store(self.url, lambda: read_record(self.storage, shard.name))
        except MissingError as error:
            raise DataError(f"{self.url}: the member table of {shard.name} is missing; {REMEDY}") from error
        if record.shard.crc32 != shard.crc32:
            raise DataError(f"{self.url}: the member table of {shard.name} is of another job; {REMEDY}")
        return table


REMEDY = "run python -m jobs.encode again"


def fingerprint_of(parts: Sequence[tuple[str, NDArray[np.uint32]]]) -> str:
    """A hash of fields and of the checksums of encoded shards, in the order of the set's shards."""
    digest = hashlib.blake2b(digest_size=16)
    for names, crc32 in parts:
        digest.update(names.encode() + b"\n")
        digest.update(crc32.astype("<u4").tobytes())
    return digest.hexdigest()
