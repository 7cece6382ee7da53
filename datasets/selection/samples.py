"""The columns of all samples of a set, as Arrow tables of some of them at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.storage.errors import MissingError
from cluster.storage.json_files import MOST_JSON_BYTES, parse_json
from cluster.storage.storage import Storage
from datasets.errors import DataError
from datasets.shards.column_tables import KEY, join_by_key, read_columns
from datasets.shards.columns import extensions_of
from datasets.shards.index import Index, ShardFolder
from datasets.shards.index_files import read_schema

PLACE, SHARD = "place", "shard"
_ENCODING = "encoding.json"  # what jobs.encode writes beside columns
_READERS = 8  # shards whose tables are read at once
_AT_ONCE = 1 << 19  # rows of a table
_MEMBER_FIELDS = ("offset", "size", "crc32")
_LOOKED_AT = 64  # shards in which members and derived columns are looked for


class SampleColumns:
    """What can be selected by: columns of the index, of members (txt.size) and of tables that a job has derived.

    Dotted names are fields of structs: json.meta.title is in the column json.
    """

    def __init__(self, index: Index, derived: Sequence[str] = ()):
        """`derived`: URLs of folders with column tables, joined by key. Raises `DataError`."""
        if len(index.folders) != 1:
            raise DataError("a selection is made of one folder of shards")
        self.index = index
        self.folder: ShardFolder = index.folders[0]
        self.missing: Counter[str] = Counter()  # samples without a row, by URL of derived columns
        self._derived = {url: Storage(url) for url in derived}
        self._schemas: dict[str, pa.Schema] = {"": self._own_schema()}
        self._schemas |= {url: self._schema_of(url) for url in derived}
        for url in derived:
            self._check_set(url)
        self._extensions = self._find_extensions()
        self._check_names()

    @property
    def names(self) -> list[str]:
        """The names of all columns that are stored, dotted."""
        names = [name for schema in self._schemas.values() for name in schema.names if name != KEY]
        return [KEY, SHARD, *names, *(f"{name}.{field}" for name in self._extensions for field in _MEMBER_FIELDS)]

    def matching(self, paths: set[tuple[str, ...]]) -> set[str]:
        """The names of columns that paths of SQL identifiers may refer to, as a whole or in part."""
        found = set()
        for name in self.names:
            path = tuple(name.lower().split("."))
            for wanted in {tuple(part.lower() for part in path) for path in paths}:
                for start in range(len(wanted)):  # samples.width, s.json.score
                    some = wanted[start:]
                    if path[: len(some)] == some or some[: len(path)] == path:
                        found.add(name)
        return found

    def tables(self, wanted: set[str]) -> Iterator[pa.Table]:
        """`PLACE` (the number of the sample in the set) and the columns `wanted` of all samples, in order."""
        parts: list[pa.Table] = []
        rows = 0
        starts = np.concatenate([[0], np.cumsum(self.index.counts)])
        with ThreadPoolExecutor(_READERS, "column tables") as pool:
            for first in range(0, len(self.index), 8 * _READERS):
                numbers = range(first, min(first + 8 * _READERS, len(self.index)))
                for number, columns in zip(numbers, pool.map(lambda n: self._read(n, wanted), numbers), strict=True):
                    places = np.arange(starts[number], starts[number + 1])
                    parts.append(_nested({PLACE: pa.array(places), **columns}))
                    rows += len(places)
                    if rows >= _AT_ONCE:
                        yield pa.concat_tables(parts, promote_options="default")
                        parts, rows = [], 0
        if parts:
            yield pa.concat_tables(parts, promote_options="default")

    def _read(self, number: int, wanted: set[str]) -> dict[str, pa.Array]:
        """The columns of a shard."""
        own = self.folder.columns(number)
        columns = self._take(own, self._schemas[""], wanted)
        if SHARD in wanted:
            columns[SHARD] = pa.array([self.index.name(number)] * own.num_rows, pa.string())
        for url, location in self._derived.items():
            schema = self._schemas[url]
            if wanted.intersection(schema.names) - {KEY}:
                columns |= self._derived_columns(url, location, number, own.column(KEY), wanted)
        extensions = [name for name in self._extensions if any(f"{name}.{field}" in wanted for field in _MEMBER_FIELDS)]
        if extensions:
            columns |= self._member_columns(number, extensions)
        return columns

    def _take(self, table: pa.Table, schema: pa.Schema, wanted: set[str]) -> dict[str, pa.Array]:
        columns = {}
        for field in schema:
            if field.name not in wanted:
                continue
            if field.name in table.column_names:
                columns[field.name] = _cast(table.column(field.name).combine_chunks(), field.type)
            else:
                columns[field.name] = pa.nulls(table.num_rows, field.type)
        return columns

    def _derived_columns(
        self, url: str, location: Storage, number: int, keys: pa.ChunkedArray, wanted: set[str]
    ) -> dict[str, pa.Array]:
        name, schema = self.index.name(number), self._schemas[url]
        wanted = wanted - {KEY}
        try:
            table = read_columns(location, name)
            rows = join_by_key(keys, table)
        except MissingError:
            self.missing[url] += len(keys)
            return {name: pa.nulls(len(keys), schema.field(name).type) for name in wanted.intersection(schema.names)}
        except DataError as error:
            raise DataError(f"{url}: columns of {name}: {error}") from error
        self.missing[url] += int((rows < 0).sum())
        taken = pa.array(rows, mask=rows < 0)
        return {name: column.take(taken) for name, column in self._take(table, schema, wanted).items()}

    def _member_columns(self, number: int, extensions: list[str]) -> dict[str, pa.Array]:
        table = self.folder.members(number)
        columns = {}
        for name in (f"{extension}.{field}" for extension in extensions for field in _MEMBER_FIELDS):
            there = name in table.column_names
            columns[name] = table.column(name).combine_chunks().cast(pa.int64()) if there else None
        return {
            name: pa.nulls(table.num_rows, pa.int64()) if column is None else column for name, column in columns.items()
        }

    def _own_schema(self) -> pa.Schema:
        try:
            return read_schema(self.folder.index_url)
        except MissingError as error:
            raise DataError(
                f"{self.folder.index_url}: an index of an earlier version, without columns; {self.folder.remedy}"
            ) from error

    def _check_set(self, url: str) -> None:
        """Raise `DataError` for complete columns of another set. Parts of a set have other hashes."""
        if self.folder.meta.selection or self.folder.list.names:
            return
        try:
            made = parse_json(self._derived[url].read(_ENCODING, MOST_JSON_BYTES))
            other = made.get("complete") is True and made.get("set") != self.index.fingerprint
        except MissingError:  # of another program
            return
        except (ValueError, AttributeError) as error:
            raise DataError(f"{url}/{_ENCODING}: damaged") from error
        if other:
            raise DataError(f"{url}: holds columns of other images than {self.folder.index_url}; encode these again")

    def _schema_of(self, url: str) -> pa.Schema:
        for number in range(len(self.index)):
            try:
                return read_columns(self._derived[url], self.index.name(number)).schema
            except MissingError:
                continue
        raise DataError(f"{url}: no columns of any shard of {self.index.url} (columns/{self.index.name(0)}.arrow)")

    def _find_extensions(self) -> list[str]:
        found: set[str] = set()
        for number in range(min(_LOOKED_AT, len(self.index))):
            found |= extensions_of(self.folder.members(number))
        taken = {name for schema in self._schemas.values() for name in schema.names}
        return sorted(name for name in found if not any(f"{name}.{field}" in taken for field in _MEMBER_FIELDS))

    def _check_names(self) -> None:
        twice = [name for name, count in Counter(self.names).items() if count > 1]
        if twice:
            raise DataError(f"columns {', '.join(sorted(twice))} are in two places: leave one of --columns out")


def _cast(values: pa.Array, kind: pa.DataType) -> pa.Array:
    if values.type == kind:
        return values
    if pa.types.is_null(kind):
        return values
    return values.cast(kind)


def _nested(columns: dict[str, pa.Array]) -> pa.Table:
    """A table in which json.meta.title is a field of a field of the column json."""
    tree: dict[str, Any] = {}
    for name, values in columns.items():
        *path, leaf = name.split(".")
        here = tree
        for part in path:
            here = here.setdefault(part, {})
            if not isinstance(here, dict):
                raise DataError(f"column {name}: {part} is a value in one column and has fields in another")
        if leaf in here:
            raise DataError(f"column {name}: {leaf} is a value in one column and has fields in another")
        here[leaf] = values
    return pa.table({name: _struct(value) for name, value in tree.items()})


def _struct(value: Any) -> pa.Array:
    if not isinstance(value, dict):
        return value
    return pa.StructArray.from_arrays([_struct(inner) for inner in value.values()], list(value))
