"""The rows of an index that is being made, kept so that an interrupted run does not read its shards again."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pyarrow as pa

from cluster.storage.errors import MissingError
from cluster.storage.storage import Storage
from datasets.errors import DataError
from datasets.shards.index_files import QUARANTINE_SCHEMA, Shard, encode_table, read_table, shard_table, shards_of
from datasets.shards.scan import ScanOptions

_SHARDS, _QUARANTINE, _COLUMNS = (f"unfinished/{name}.arrow" for name in ("shards", "quarantine", "columns"))
_INTERVAL = 60.0  # seconds


class Unfinished:
    """The shards that were read for an index so far, in files beside it."""

    def __init__(self, location: Storage, options: ScanOptions):
        self._location = location
        self._options = {b"options": repr(options).encode()}  # rows of other options are not kept
        self._written = time.monotonic()

    def read(self) -> tuple[dict[str, Shard], pa.Table, pa.Schema]:
        """The rows by name, their quarantined samples and columns; none if there are none, or they are damaged."""
        try:
            shards = read_table(self._location, _SHARDS)
            quarantine = read_table(self._location, _QUARANTINE)
            columns = read_table(self._location, _COLUMNS).schema
            if shards.schema.metadata != self._options or not quarantine.schema.equals(QUARANTINE_SCHEMA):
                raise DataError("rows of another index")
            return shards_of(shards), quarantine, columns
        except (MissingError, DataError, TypeError):
            return {}, QUARANTINE_SCHEMA.empty_table(), pa.schema([])

    def is_due(self) -> bool:
        """Whether the rows should be written again."""
        return time.monotonic() - self._written > _INTERVAL

    def write(self, shards: Sequence[Shard], quarantine: pa.Table, columns: pa.Schema) -> None:
        """Write all rows so far."""
        self._location.write(_COLUMNS, encode_table(columns.empty_table()))
        self._location.write(_QUARANTINE, encode_table(quarantine))
        self._location.write(_SHARDS, encode_table(shard_table(shards).replace_schema_metadata(self._options)))
        self._written = time.monotonic()

    def delete(self) -> None:
        """Delete the files, if there are any, once the index is written."""
        for path in (_SHARDS, _QUARANTINE, _COLUMNS):
            if self._location.exists(path):  # not every store that can be indexed lets objects be deleted
                self._location.delete(path)
