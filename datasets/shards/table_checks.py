"""Checks of an index's tables, which may come from anywhere: nothing in them may lead out of the folder of the shards
or beyond the end of a shard. `read_table` has checked that they are tables at all.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from datasets.shards.columns import numbers

_NAMES_AT_ONCE = 1 << 14  # converted to Python strings at a time
_MOST_IMAGES = 1 << 40  # of all shards: positions and sums stay far from the end of int64
_MOST_BYTES = 1 << 50  # of a shard
_MEMBER_FIELDS = (("offset", pa.int64()), ("size", pa.int64()), ("crc32", pa.uint32()))


def check_shards(table: pa.Table) -> None:
    """Raise ValueError unless every row of a table of shards (of the right schema) is a possible one."""
    for field in table.schema:
        column = table.column(field.name)
        if column.null_count:
            raise ValueError(f"{field.name}: {column.null_count} rows have no value")
        if pa.types.is_integer(field.type) and table.num_rows:
            _check_range(field.name, column)
    images, grey = numbers(table.column("images")), numbers(table.column("grey"))
    if (grey > images).any():
        raise ValueError("grey: more grey images than images")
    if images.sum(dtype=np.float64) > _MOST_IMAGES:
        raise ValueError(f"images: more than {_MOST_IMAGES:,} in all")
    hashes = np.fromiter((hash(name) for name in _checked_names(table)), np.int64, table.num_rows)
    if len(np.unique(hashes)) < len(hashes):
        raise ValueError("name: a shard is listed twice")


def check_members(table: pa.Table, shard_bytes: int) -> None:
    """Raise ValueError unless a member table has the columns of one and its members lie within the shard."""
    names = table.schema.names
    extensions = [name.removesuffix(".offset") for name in names[1::3]]
    fields = [("key", pa.string())]
    fields += [(f"{extension}.{field}", kind) for extension in extensions for field, kind in _MEMBER_FIELDS]
    if not table.schema.equals(pa.schema(fields)) or len(set(names)) < len(names):
        raise ValueError("its columns are not those of a member table")
    if table.column("key").null_count:
        raise ValueError("key: a row has no value")
    for extension in extensions:
        offset, size = (numbers(table.column(f"{extension}.{field}"), missing=-1) for field in ("offset", "size"))
        inside = (offset >= 0) & (size >= 0) & (size <= shard_bytes) & (offset <= shard_bytes - size)
        if not (inside | ((offset == -1) & (size == -1))).all():
            row = int(np.flatnonzero(~inside)[0])
            raise ValueError(f"{extension}: the member in row {row} is not within the shard's {shard_bytes} bytes")


def _check_range(name: str, column: pa.ChunkedArray) -> None:
    values = numbers(column)
    most = _MOST_BYTES if name in ("bytes", "read_bytes") else _MOST_IMAGES
    if values.min() < 0 or int(values.max()) > most:
        wrong = int(values.min()) if values.min() < 0 else int(values.max())
        raise ValueError(f"{name}: {wrong} is not a number from 0 to {most}")


def _checked_names(table: pa.Table) -> Iterator[str]:
    """The names of the shards. Raises ValueError for one that is no relative path below the folder."""
    for batch in table.select(["name"]).to_batches(max_chunksize=_NAMES_AT_ONCE):
        for name in batch.column(0).to_pylist():
            if "://" in name or "\0" in name or not {"", ".", ".."}.isdisjoint(name.split("/")):
                raise ValueError(f"name: {name[:200]!r} is not a path below the folder of the shards")
            yield name
