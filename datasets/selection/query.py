"""SQL over the columns of a set by DuckDB, an optional package."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from shlex import quote
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datasets.errors import DataError
from datasets.selection.samples import PLACE, SampleColumns
from datasets.shards.column_tables import KEY
from datasets.shards.parquet_columns import PARQUET

Integers = NDArray[np.int64]
Duplicates = Literal["", "crc", "phash"]

_SAME = {"crc": "crc32, bytes, width, height", "phash": "coalesce(phash::HUGEINT, -1 - place)"}  # of duplicates
_NEEDED = {"": set[str](), "crc": {"crc32", "bytes", "width", "height"}, "phash": {"phash"}}
_FROM_MEMBERS = ("json", PARQUET)
_NAMED = 40  # columns in a message
_SAMPLE, _SPLIT = "sample", "split"  # purposes of a key's hash: independent of each other


class Wanted(NamedTuple):
    """What is selected, in this order."""

    where: str = ""  # SQL, a condition on a sample
    deduplicate: Duplicates = ""  # keep the first of samples with equal images, or equal perceptual hashes
    sample: int | None = None  # keep this many, by a hash of the key

    def __str__(self) -> str:
        parts = [f"where {self.where}" if self.where else "", self.deduplicate and f"deduplicate {self.deduplicate}"]
        return "; ".join(filter(None, [*parts, "" if self.sample is None else f"sample {self.sample}"]))


class Found(NamedTuple):
    """The samples that were selected."""

    places: Integers  # [n], ascending: their numbers in the set
    fractions: NDArray[np.float64]  # [n], in [0, 1): a hash of the key, by which sets are split
    matching: int  # samples for which the condition holds
    distinct: int  # of these, without duplicates


def find(columns: SampleColumns, wanted: Wanted) -> Found:
    """Run the query. Raises `DataError` for a condition that is not SQL over these columns."""
    if wanted.deduplicate == "phash" and "phash" not in columns.names:
        raise DataError(
            f"{columns.folder.index_url}: has no perceptual hashes; "
            f"add them with: python -m jobs.index {columns.folder.entry} --columns phash"
        )
    with _connection() as database:
        references = _references(database, wanted.where)
        _check_fields(columns, wanted.where, references)
        needed = {KEY} | _NEEDED[wanted.deduplicate] | columns.matching(references)
        _load(database, columns, needed)
        _choose(database, columns, wanted)
        matching = distinct = _count(database)
        if same := _SAME.get(wanted.deduplicate):
            _replace(
                database,
                f"SELECT s.* FROM chosen s JOIN (SELECT min(place) AS place FROM chosen GROUP BY {same}) USING (place)",
            )
            distinct = _count(database)
        if wanted.sample is not None:
            _replace(database, f"SELECT * FROM chosen ORDER BY {_hash(_SAMPLE)}, place LIMIT {int(wanted.sample)}")
        rows = database.execute(f"SELECT place, {_hash(_SPLIT)} AS hash FROM chosen ORDER BY place").fetchnumpy()
    fractions = (np.asarray(rows["hash"], np.uint64) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return Found(np.asarray(rows["place"], np.int64), fractions, matching, distinct)


@contextmanager
def _connection() -> Iterator[Any]:
    """A database in memory that sees neither files nor Python's variables, and that spills into a temporary folder."""
    try:
        import duckdb
    except ImportError as error:
        raise DataError("selecting needs DuckDB: pip install duckdb") from error
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with tempfile.TemporaryDirectory(prefix="select-") as spilled:
        settings: dict[str, str | bool | int | float | list[str]] = {
            "temp_directory": spilled,
            "threads": threads,
            "python_enable_replacements": False,
        }
        database = duckdb.connect(":memory:", config=settings)
        try:
            database.execute("SET enable_external_access = false")
            yield database
        finally:
            database.close()


def _references(database: Any, where: str) -> set[tuple[str, ...]]:
    """The identifiers in a condition: (json, similarity) of json.similarity."""
    if not where:
        return set()
    tree = json.loads(database.execute("SELECT json_serialize_sql(?)", [_select(where)]).fetchall()[0][0])
    if tree["error"]:
        raise DataError(f"--where {where}: {' '.join(str(tree.get('error_message')).split())}")
    found: set[tuple[str, ...]] = set()
    stack: list[Any] = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, dict):
            if names := node.get("column_names"):
                found.add(tuple(map(str, names)))
            stack += node.values()
        elif isinstance(node, list):
            stack += node
    return found


def _check_fields(columns: SampleColumns, where: str, references: set[tuple[str, ...]]) -> None:
    """Raise `DataError` for a field of .json members or Parquet files that is no column of the index yet."""
    for path in sorted(references):
        if path[0].lower() in _FROM_MEMBERS and len(path) > 1 and not columns.matching({path}):
            name = ".".join((path[0].lower(), *path[1:]))
            raise DataError(
                f"--where {where}: {columns.folder.index_url} has no column {name}; "
                f"add it with: python -m jobs.index {quote(columns.folder.entry)} --columns {name}"
            )


def _select(where: str) -> str:
    return f"SELECT * FROM samples WHERE ({where}\n)"  # a comment at the end of the condition ends with its line


def _load(database: Any, columns: SampleColumns, needed: set[str]) -> None:
    """The table `samples` with the columns that the query needs."""
    made = False
    for table in columns.tables(needed):
        database.register("part", table)
        database.execute("INSERT INTO samples SELECT * FROM part" if made else "CREATE TABLE samples AS FROM part")
        database.unregister("part")
        made = True


def _choose(database: Any, columns: SampleColumns, wanted: Wanted) -> None:
    """The table `chosen`: those samples for which the condition holds."""
    import duckdb

    kept = ", ".join(sorted({PLACE, KEY, *_NEEDED[wanted.deduplicate]}))
    query = _select(wanted.where) if wanted.where else "FROM samples"
    try:
        database.execute(f"CREATE TABLE chosen AS SELECT {kept} FROM ({query})")
    except duckdb.Error as error:
        names = columns.names
        listed = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
        reason = str(error).split("\n\n")[0].split("\nLINE")[0]
        raise DataError(f"--where {wanted.where}: {' '.join(reason.split())}; columns: {listed}") from error


def _replace(database: Any, query: str) -> None:
    database.execute(f"CREATE TABLE fewer AS {query}")
    database.execute("DROP TABLE chosen")
    database.execute("ALTER TABLE fewer RENAME TO chosen")


def _count(database: Any) -> int:
    return int(database.execute("SELECT count(*) FROM chosen").fetchall()[0][0])


def _hash(purpose: str) -> str:
    """64 bits of the MD5 of a purpose and the key: the same whatever else is in the set, and in every version."""
    return f"md5_number_lower('{purpose}/' || key)"
