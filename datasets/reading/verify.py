"""Check a shard against its index: the CRC of every member, every image decoded."""

from __future__ import annotations

from typing import NamedTuple

from cluster.storage.errors import StorageError
from datasets.errors import DataError
from datasets.order.order import Range
from datasets.reading.shard_reader import ShardReader
from datasets.shards.index import Index

_AT_ONCE = 256  # images


class Verified(NamedTuple):
    """The result for a shard."""

    shard: str  # URL
    images: int
    bad: list[tuple[str, str]]  # (key, reason); key "": the shard as a whole


def verify_shard(index: Index, number: int) -> Verified:
    """Read and decode every sample of shard `number`."""
    where, images = index.where(number), int(index.counts[number])
    bad: list[tuple[str, str]] = []
    folder, _ = index.folder_of(number)
    try:
        shard = index.shard(number)
        entry = folder.storage.stat(shard.name)
        if entry is None:
            return Verified(where, images, [("", "the shard does not exist")])
        if entry.size != shard.bytes:
            bad.append(("", f"the shard has {entry.size} bytes, {shard.bytes} when it was indexed"))
        reader = ShardReader(index)
        for start in range(0, images, _AT_ONCE):
            bad += _verify_range(reader, index, Range(number, start, min(start + _AT_ONCE, images)))
    except (DataError, StorageError) as error:
        bad.append(("", str(error)))
    return Verified(where, images, bad)


def _verify_range(reader: ShardReader, index: Index, part: Range) -> list[tuple[str, str]]:
    encoded = reader.read(part)
    bad = []
    for row in range(part.stop - part.start):
        try:
            reader.decode(encoded, row, index.format)
        except DataError as error:
            bad.append((reader.where(encoded, row)[1], str(error)))
    return bad
