"""Column tables: fields of the samples of a shard, an Arrow file per shard.

<location>/columns/NAME.arrow   key: string, then any fields (numbers, bool, string; nullable); names may be dotted

Those of an index have a row for each row of the member table. Others, which a job derived from the images, are joined
by key.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cluster.storage.storage import Storage, join
from datasets.errors import DataError
from datasets.shards.columns import numbers
from datasets.shards.index_files import encode_table, read_table

COLUMNS = "columns"
KEY = "key"


def column_file(shard: str) -> str:
    """The path of a shard's column table."""
    return f"{COLUMNS}/{shard}.arrow"


def write_columns(location: Storage, shard: str, table: pa.Table) -> None:
    """Write the column table of a shard. Raises ValueError if it is none."""
    _check(table)
    location.write(column_file(shard), encode_table(table))


def read_columns(location: Storage, shard: str) -> pa.Table:
    """The column table of a shard, memory-mapped from a local disk. Raises `MissingError`, or `DataError`."""
    table = read_table(location, column_file(shard))
    try:
        _check(table)
    except ValueError as error:
        raise DataError(f"{join(location.url, column_file(shard))}: not a column table ({error})") from error
    return table


def join_by_key(keys: pa.ChunkedArray, table: pa.Table) -> NDArray[np.int64]:
    """The row of a column table for each key, int64 [n]; -1 where it has none. Raises `DataError` if a key is twice."""
    there = table.column(KEY)
    if there.equals(keys):
        return np.arange(len(keys), dtype=np.int64)
    if pc.count_distinct(there).as_py() < len(there):
        counts = pc.value_counts(there)
        twice = next(entry["values"].as_py() for entry in counts if entry["counts"].as_py() > 1)
        raise DataError(f"key {twice!r} is in more than one row")
    found: pa.ChunkedArray = pc.index_in(keys, value_set=there.combine_chunks())
    rows: NDArray[Any] = numbers(found, missing=-1)
    return rows.astype(np.int64)


def _check(table: pa.Table) -> None:
    """Raise ValueError unless a table is a column table."""
    names = table.schema.names
    if not names or names[0] != KEY or table.schema.types[0] != pa.string():
        raise ValueError(f"its first column is not {KEY}, text")
    if len(set(names)) < len(names):
        raise ValueError("two columns have one name")
    if table.column(KEY).null_count:
        raise ValueError("a row has no key")
