"""The rows of an index that is being made, kept so that an interrupted run does not read its shards again."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pyarrow as pa

from cluster.storage.errors import MissingError
from cluster.storage.storage import Storage
from datasets.errors import DataError
from datasets.shards.index_files import QUARANTINE_SCHEMA, Shard, encode_table, read_table, shard_table, shards_of

_SHARDS, _QUARANTINE = "unfinished/shards.arrow", "unfinished/quarantine.arrow"
_INTERVAL = 60.0  # seconds


class Unfinished:
    """The shards that were read for an index so far, in files beside it."""

    def __init__(self, location: Storage, image: str):
        self._location = location
        self._image = {b"image": image.encode()}  # rows for another choice of the image are not kept
        self._written = time.monotonic()

    def read(self) -> tuple[dict[str, Shard], pa.Table]:
        """The rows by name, and their quarantined samples; none if there are none, or they are damaged."""
        try:
            shards = read_table(self._location, _SHARDS)
            quarantine = read_table(self._location, _QUARANTINE)
            if shards.schema.metadata != self._image or not quarantine.schema.equals(QUARANTINE_SCHEMA):
                raise DataError("rows of another index")
            return shards_of(shards), quarantine
        except (MissingError, DataError, TypeError):
            return {}, QUARANTINE_SCHEMA.empty_table()

    def is_due(self) -> bool:
        """Whether the rows should be written again."""
        return time.monotonic() - self._written > _INTERVAL

    def write(self, shards: Sequence[Shard], quarantine: pa.Table) -> None:
        """Write all rows so far."""
        self._location.write(_QUARANTINE, encode_table(quarantine))
        self._location.write(_SHARDS, encode_table(shard_table(shards).replace_schema_metadata(self._image)))
        self._written = time.monotonic()

    def delete(self) -> None:
        """Delete the files, if there are any, once the index is written."""
        for path in (_SHARDS, _QUARANTINE):
            if self._location.exists(path):  # not every store that can be indexed lets objects be deleted
                self._location.delete(path)
