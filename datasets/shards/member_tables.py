"""Member tables as they were written, or not."""

from __future__ import annotations

import zlib
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from cluster.storage.errors import MissingError, TooLargeError
from cluster.storage.storage import Storage
from datasets.errors import DataError
from datasets.shards.column_tables import read_columns
from datasets.shards.columns import numbers
from datasets.shards.index_files import Shard, member_file, read_table
from datasets.shards.sample_columns import has_columns
from datasets.shards.table_checks import check_members

_READERS = 8  # tables that are read at once: each is a request of a remote index


def checksum(table: pa.Table) -> int:
    """CRC-32 of the keys, sizes and checksums of a member table: the identity of a shard's contents."""
    crc = zlib.crc32("\n".join(table.column("key").to_pylist()).encode())
    for name in table.column_names:
        if name.endswith((".size", ".crc32")):
            column = numbers(table.column(name))
            crc = zlib.crc32(column.tobytes(), zlib.crc32(name.encode(), crc))
    return crc


def damaged_tables(location: str, shards: Collection[Shard], columns: Collection[str]) -> set[str]:
    """Names of the shards whose member table is missing, or not the one that was written with the shard's row, or
    whose column table is missing or lacks some of `columns`.
    """
    folder = Storage(location)
    with ThreadPoolExecutor(_READERS, "member tables") as pool:
        intact = pool.map(lambda shard: _is_intact(folder, shard, columns), shards)
        return {shard.name for shard, good in zip(shards, intact, strict=True) if not good}


def _is_intact(folder: Storage, shard: Shard, columns: Collection[str]) -> bool:
    try:
        table = read_table(folder.folder("members"), member_file(shard.name))
        check_members(table, shard.bytes)
        added = read_columns(folder, shard.name)
    except (DataError, ValueError, MissingError, TooLargeError):
        return False
    whole = added.num_rows == shard.images and has_columns(added, columns)
    return whole and table.num_rows == shard.images and checksum(table) == shard.crc32
