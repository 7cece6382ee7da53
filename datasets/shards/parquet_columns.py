"""Columns from the Parquet files that img2dataset writes beside its shards: 00000.parquet of 00000.tar."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import pyarrow as pa

from cluster.storage.errors import MissingError
from cluster.storage.storage import Storage
from datasets.errors import DataError
from datasets.shards.column_tables import KEY, join_by_key

PARQUET = "parquet"
_MOST_BYTES = 1 << 30  # of a file that is read


class ParquetColumns(NamedTuple):
    """Columns of the samples of a shard."""

    columns: dict[str, pa.Array]  # by parquet.FIELD, a row per sample
    problem: str = ""  # why there are none


def parquet_columns(folder: Storage, shard: str, keys: pa.ChunkedArray, wanted: Sequence[str]) -> ParquetColumns:
    """The columns `wanted` (parquet.FIELD; parquet: all) of the samples with `keys`; null where there is no value.

    A file that is missing or damaged is a problem, not an error: some of a million are.
    """
    file = f"{shard.removesuffix('.tar')}.parquet"
    fields = [name.partition(".")[2] for name in wanted]
    try:
        table = _read(folder, file, None if "" in fields else [KEY, *fields])
        rows = join_by_key(keys, table)
    except MissingError:
        return _nothing(fields, len(keys), f"{file}: no such file")
    except DataError as error:
        return _nothing(fields, len(keys), f"{file}: {error}")
    taken = pa.array(rows, mask=rows < 0)
    names = [name for name in table.column_names if name != KEY]
    found = {f"{PARQUET}.{name}": table.column(name).combine_chunks().take(taken) for name in names}
    absent = {f"{PARQUET}.{name}": pa.nulls(len(keys)) for name in fields if name and name not in names}
    return ParquetColumns(found | absent)


def _nothing(fields: list[str], rows: int, problem: str) -> ParquetColumns:
    return ParquetColumns({f"{PARQUET}.{name}": pa.nulls(rows) for name in fields if name}, problem)


def _read(folder: Storage, file: str, names: list[str] | None) -> pa.Table:
    """The key and the fields with plain values. Raises `MissingError`, or `DataError` if there is no such table."""
    import pyarrow.parquet as pq

    data = folder.read(file, _MOST_BYTES)
    try:
        parquet = pq.ParquetFile(pa.BufferReader(data))
        there = parquet.schema_arrow.names
        if KEY not in there:
            raise DataError(f"no column {KEY!r}, by which rows are joined")
        table = parquet.read(columns=None if names is None else [name for name in names if name in there])
        columns = {KEY: table.column(KEY).cast(pa.string())}
        for field in table.schema:
            if field.name != KEY and (kind := _plain(field.type)) is not None:
                columns[field.name] = table.column(field.name).cast(kind)
        joined = pa.table(columns)
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"not a Parquet file that can be read ({' '.join(str(error).split())[:100]})") from error
    if joined.column(KEY).null_count:
        raise DataError("a row has no key")
    return joined


def _plain(kind: pa.DataType) -> pa.DataType | None:
    """The type that a column gets: bool, int64, double or string; None for lists and the like."""
    if pa.types.is_boolean(kind):
        return kind
    if pa.types.is_integer(kind):
        return pa.int64()
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return pa.float64()
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_temporal(kind):
        return pa.string()
    return pa.null() if pa.types.is_null(kind) else None
