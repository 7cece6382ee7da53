"""Encoded shards joined to the shards of an index: by the shard's name, then sample by sample by key."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from datasets.errors import DataError
from datasets.shards.column_tables import join_by_key
from datasets.shards.columns import numbers
from datasets.shards.encoded import REMEDY, SOURCE, EncodedShards, fingerprint_of, source_crcs

if TYPE_CHECKING:
    from datasets.shards.index import Index

_COMPARED = 8  # shards that are compared sample by sample when a set is opened


class Join:
    """Encoded shards and the shards of an index that they were made from."""

    def __init__(self, encoded: EncodedShards, names: pa.ChunkedArray, crc32: NDArray[np.uint32]):
        """`names` and `crc32` of the index's shards."""
        self.encoded = encoded
        listed = encoded.table.column("name").combine_chunks()
        self.rows: NDArray[np.int64] = numbers(pc.index_in(names, value_set=listed), missing=-1).astype(np.int64)
        """int64 [S]: the row of each shard of the index in `encoded`; -1: it has none."""
        there = self.rows >= 0
        self.same = np.zeros(len(self.rows), dtype=bool)
        """bool [S]: whether the shard is known to be the one that was encoded."""
        self.same[there] = numbers(encoded.table.column("source_crc32"))[self.rows[there]] == crc32[there]

    def aligned(self, number: int, members: pa.Table, image: NDArray[np.int64]) -> pa.Table:
        """The member table of shard `number` with a row for each of the index's `members`, of nulls where it has none.

        `image`: the CRC-32 of each sample's image. Raises `DataError` if a sample has changed since it was encoded.
        """
        table = self.encoded.members(int(self.rows[number]))
        rows = join_by_key(members.column("key"), table)
        there = rows >= 0
        if not self.same[number]:
            now = source_crcs(members, image, self.encoded.reads)
            changed = np.flatnonzero(there)[numbers(table.column(SOURCE))[rows[there]] != now[there]]
            if len(changed):
                key = members.column("key")[int(changed[0])].as_py()
                raise DataError(f"sample {key!r} has changed since {self.encoded.url} was encoded; {REMEDY}")
        return table.take(pa.array(rows, mask=~there))


class Joins:
    """All encoded shards that are joined to an index: `data.columns`."""

    def __init__(self, index: Index, urls: tuple[str, ...]):
        self.urls = urls
        names, crc32 = index.names, index.crc32
        self._joins = [Join(EncodedShards(url), names, crc32) for url in urls]
        self._index = index

    @property
    def extensions(self) -> set[str]:
        """Of the members that samples have through them."""
        return {extension for join in self._joins for extension in join.encoded.extensions}

    @property
    def bytes_per_sample(self) -> float:
        """Upper bound on the bytes that are read for a sample."""
        return sum(join.encoded.bytes_per_sample for join in self._joins)

    def of(self, number: int, extension: str) -> Join | None:
        """Where the members with an extension of the samples of a shard are; None: nowhere."""
        found = [join for join in self._joins if extension in join.encoded.extensions and join.rows[number] >= 0]
        return next((join for join in found if join.same[number]), next(iter(found), None))

    def fingerprint(self) -> str:
        """A hash of the contents that are joined; "" if there are none."""
        parts = []
        for join in self._joins:
            crc32, there = numbers(join.encoded.table.column("crc32")), join.rows >= 0
            if there.any():
                values = np.where(there, crc32[join.rows], 0).astype(np.uint32)
                parts.append((",".join(sorted(join.encoded.extensions)), values))
        return fingerprint_of(sorted(parts, key=lambda part: (part[0], part[1].tobytes()))) if parts else ""

    def check(self, extension: str, image_crcs: Callable[[int], NDArray[np.int64]]) -> None:
        """Raise `DataError` unless every shard has members with an extension, made of the samples as they are now.

        Shards that are not the ones that were encoded are compared sample by sample, here the first of them.
        """
        joins = [join for join in self._joins if extension in join.encoded.extensions]
        rows = np.max([join.rows for join in joins], axis=0)
        urls = ", ".join(join.encoded.url for join in joins)
        if (rows < 0).any():
            number = int(np.flatnonzero(rows < 0)[0])
            raise DataError(
                f"{urls}: {(rows < 0).sum():,} of {len(rows):,} shards are not encoded, such as "
                f"{self._index.where(number)}; run python -m jobs.encode for them"
            )
        other = np.flatnonzero(~np.any([join.same for join in joins], axis=0))
        for number in other[:_COMPARED].tolist():
            join = self.of(number, extension)
            assert join is not None
            try:
                join.aligned(number, self._index.members(number), image_crcs(number))
            except DataError as error:
                raise DataError(f"{self._index.where(number)}: {error}") from error
