"""Checks a shard against its index: every byte of every member, every image decoded."""

from __future__ import annotations

from typing import NamedTuple

from cluster.storage.errors import StorageError
from datasets.errors import DataError
from datasets.order.order import Range
from datasets.reading.members import MemberReader
from datasets.shards.index import Index

_AT_ONCE = 256  # images


class Verified(NamedTuple):
    """What was found in a shard."""

    shard: str  # URL
    images: int
    bad: list[tuple[str, str]]  # (key, what is wrong with it); key "": the shard as a whole


def verify_shard(index: Index, number: int) -> Verified:
    """Read and decode every sample of shard `number`."""
    where, images = index.where(number), int(index.counts[number])
    bad: list[tuple[str, str]] = []
    part, _ = index.place(number)
    try:
        shard = index.shard(number)
        entry = part.storage.stat(shard.name)
        if entry is None:
            return Verified(where, images, [("", "the shard is not there")])
        if entry.size != shard.bytes:
            bad.append(("", f"the shard has {entry.size} bytes, {shard.bytes} when it was indexed"))
        reader = MemberReader(index)
        for start in range(0, images, _AT_ONCE):
            bad += _verify_range(reader, index, Range(number, start, min(start + _AT_ONCE, images)))
    except (DataError, StorageError) as error:
        bad.append(("", str(error)))
    return Verified(where, images, bad)


def _verify_range(reader: MemberReader, index: Index, part: Range) -> list[tuple[str, str]]:
    held = reader.read(part)
    bad = []
    for row in range(part.stop - part.start):
        try:
            reader.decode(held, row, index.format)
        except DataError as error:
            bad.append((reader.where(held, row)[1], str(error)))
    return bad
