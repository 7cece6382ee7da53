"""Copy the samples of an index, such as a selection, into shards of their own, their members unchanged.

<out>/000000.tar, ...             the shards
<out>/index/repacked.json         of which index the samples are, and how many a shard has
<out>/index/repacking/NAME.json   that a shard is complete, until all are indexed
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from cluster.storage.errors import MissingError
from cluster.storage.storage import Storage
from datasets.errors import DataError
from datasets.order.order import Range
from datasets.packing.write import put_in_place, scratch_folder, write_members
from datasets.reading.shard_reader import ShardReader
from datasets.shards.columns import extensions_of
from datasets.shards.index import Index

_RECORD, _RECORDS = "index/repacked.json", "index/repacking"
_READ = 256  # samples of a range request


class RepackJob(NamedTuple):
    """A shard to write: the samples [start, stop) of an index, in its order."""

    url: str  # of the set
    location: str  # of the index; "": <url>/index
    out: str  # URL
    name: str
    start: int
    stop: int


class Repacked(NamedTuple):
    """A shard that is complete."""

    name: str
    images: int
    bytes: int


def repack(
    index: Index,
    url: str,
    location: str,
    out: str,
    shard_images: int,
    each: Callable[[Callable[[RepackJob], Repacked], list[RepackJob]], Iterable[Repacked]] = map,
) -> Iterator[Repacked]:
    """Write the samples of `index`, at `location` of the set `url`, into shards of `shard_images`, without an index.

    Complete shards of an interrupted call are kept. `each` maps `write_shard` over the jobs, possibly in other
    processes. Raises `DataError` for a sample that cannot be read, and if `out` holds other samples.
    """
    folder = Storage(out)
    _begin(folder, _record(index, shard_images))
    total, jobs, kept = index.images, list[RepackJob](), list[Repacked]()
    for number, start in enumerate(range(0, total, shard_images)):
        job = RepackJob(url, location, out, f"{number:06d}.tar", start, min(start + shard_images, total))
        done = _complete(folder, job)
        kept += [done] if done else []
        jobs += [] if done else [job]
    yield from kept
    yield from each(write_shard, jobs)


def _record(index: Index, shard_images: int) -> dict[str, Any]:
    """What decides the contents of the shards."""
    return {"fingerprint": index.fingerprint, "shard_images": shard_images}


def _found(folder: Storage) -> dict[str, Any] | None:
    """The record in a folder; None if there is none."""
    try:
        found: dict[str, Any] = json.loads(folder.read(_RECORD))
    except (MissingError, ValueError):
        return None
    return found


def _begin(folder: Storage, record: dict[str, Any]) -> None:
    """Record what the folder is for. Raises `DataError` if it holds something else."""
    found = _found(folder)
    if found == record:
        return
    tars = _tars(folder)
    if tars:
        what = "the samples of another index, or other shards of them" if found else "tars that were not repacked here"
        raise DataError(f"{folder.url}: holds {what} ({min(tars)}); give another --out")
    folder.write(_RECORD, json.dumps(record).encode())


def write_shard(job: RepackJob) -> Repacked:
    """Write a shard, and then the record that it is complete."""
    index, folder = Index.open(job.url, job.location), Storage(job.out)
    with scratch_folder(folder) as scratch:
        write_members(scratch / job.name, _samples(index, job))
        size = (scratch / job.name).stat().st_size
        put_in_place(folder, scratch, job.name)
    entry = folder.stat(job.name)
    folder.write(f"{_RECORDS}/{job.name}.json", json.dumps([size, entry.etag if entry else ""]).encode())
    return Repacked(job.name, job.stop - job.start, size)


def is_repacked(index: Index, out: str, shard_images: int) -> bool:
    """Whether `out` holds these shards, all of them and indexed."""
    folder = Storage(out)
    return _found(folder) == _record(index, shard_images) and folder.exists("index/index.json")


def forget_records(out: str) -> None:
    """Delete the records of shards, when the new set is indexed."""
    folder = Storage(out).folder(_RECORDS)
    for entry in list(folder.list()):
        folder.delete(entry.path)


def _samples(index: Index, job: RepackJob) -> Iterator[tuple[str, dict[str, bytes]]]:
    """The keys and members of the samples of a job; a key that is repeated in the new shard gets its shard's name."""
    starts = np.concatenate([[0], np.cumsum(index.counts)])
    seen: set[str] = set()
    for number in range(int(np.searchsorted(starts, job.start, side="right")) - 1, len(index)):
        first, last = max(job.start, int(starts[number])), min(job.stop, int(starts[number + 1]))
        if first >= job.stop:
            return
        if first < last:
            rows = range(first - int(starts[number]), last - int(starts[number]))
            for key, members in _members(index, number, rows):
                if key in seen:
                    key = f"{index.name(number).removesuffix('.tar')}/{key}"
                if key in seen:
                    raise DataError(f"{index.where(number)}: sample {key!r} is repeated in {job.out}/{job.name}")
                seen.add(key)
                yield key, members


def _members(index: Index, number: int, rows: range) -> Iterator[tuple[str, dict[str, bytes]]]:
    """The keys and all members of some samples of a shard, checked by their checksums."""
    extensions = sorted(extensions_of(index.members(number)))
    reader = ShardReader(index, members=extensions)
    for start in range(rows.start, rows.stop, _READ):
        held = reader.read(Range(number, start, min(start + _READ, rows.stop)))
        for row in range(held.rows.stop - held.rows.start):
            shard, key = reader.where(held, row)
            try:
                found = {name: reader.member(held, row, name) for name in extensions}
            except DataError as error:
                raise DataError(f"{shard}: sample {key!r}: {error}") from error
            yield key, {name: bytes(data) for name, data in found.items() if data is not None}


def _complete(folder: Storage, job: RepackJob) -> Repacked | None:
    """The shard of a job; None if it has to be written."""
    try:
        size, etag = json.loads(folder.read(f"{_RECORDS}/{job.name}.json"))
        entry = folder.stat(job.name)
    except (MissingError, ValueError, TypeError):
        return None
    same = entry is not None and (entry.size, entry.etag) == (size, etag)
    return Repacked(job.name, job.stop - job.start, size) if same else None


def _tars(folder: Storage) -> set[str]:
    try:
        return {entry.path for entry in folder.list() if entry.path.endswith(".tar")}
    except MissingError:
        return set()
