"""Make or update the index of shards."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import pyarrow as pa

from cluster.storage.errors import MissingError
from cluster.storage.storage import Entry, Storage
from datasets.errors import DataError
from datasets.shards.index_files import Meta, Shard, encode_table, member_file, numbers, read_index, write_index
from datasets.shards.scan import Sample, scan_tar
from datasets.shards.shard_list import ShardList

_INDEX = "/index/index.json"  # of a set in a folder below
ScanAll = Callable[[str, list[str], str], Iterable[Shard]]


class Indexed(NamedTuple):
    """The index, and how many shards were read for it."""

    meta: Meta
    shards: list[Shard]
    scanned: int  # the others were in the index already and have not changed


def index_shards(
    url: str,
    location: str,
    levels: int | None = None,
    class_names: tuple[str, ...] = (),
    scan_all: ScanAll | None = None,
    progress: Callable[[int], object] = lambda shards: None,
) -> Indexed:
    """Bring the index at `location` of the folder or pattern `url` up to date.

    Only shards that are new, or whose size or ETag has changed, are read. `scan_all(folder, names, location)` scans
    them and writes their member tables (default: one after another in this process). `levels` and `class_names`
    default to those of the existing index. Raises `DataError`, one line that names the shard, for anything that is not
    a complete tar of complete samples.
    """
    wanted = ShardList.parse(url)
    entries = list_shards(wanted)
    before, known = _known(wanted.folder, location)
    fresh = {name: known[name] for name, entry in entries.items() if _unchanged(known.get(name), entry)}
    stale = [name for name in entries if name not in fresh]
    progress(len(fresh))
    for shard in (scan_all or scan_one_by_one)(wanted.folder, stale, location):
        fresh[shard.name] = shard
        progress(1)
    if wanted.names:  # keep the folder's other shards
        fresh = known | fresh
    shards = [fresh[name] for name in sorted(fresh)]
    if levels is None:
        levels = before.levels if before else 256
    meta = describe(shards, levels, class_names or (before.class_names if before else ()), url)
    if before:
        meta = meta._replace(binarised=before.binarised, source=before.source)
    write_index(Storage(location), meta, shards)
    return Indexed(meta, shards, len(stale))


def list_shards(wanted: ShardList) -> dict[str, Entry]:
    """The .tar objects of a shard list, by name. Raises `DataError` if there are none, or in sets of their own."""
    listed = list(Storage(wanted.folder).list())
    entries = [entry for entry in listed if _is_shard(entry.path)]
    if not entries:
        raise DataError(f"{wanted.folder}: no such folder, or no .tar in it")
    places = wanted.select([entry.path for entry in entries])
    sets = {entry.path.removesuffix(_INDEX) for entry in listed if entry.path.endswith(_INDEX)}
    inside = sorted({path.rpartition("/")[0] for path in (entries[place].path for place in places)} & sets)
    if inside:
        raise DataError(
            f"{wanted.folder}: holds sets with an index of their own ({', '.join(inside)}); give one of them, such as "
            f"{wanted.folder}/{inside[0]}, so that they are not mixed"
        )
    return {entries[place].path: entries[place] for place in places}


def scan_one_by_one(folder: str, names: list[str], location: str) -> Iterator[Shard]:
    """Scan shards in this process."""
    for name in names:
        yield index_shard(Storage(folder), name, Storage(location))


def index_shard(folder: Storage, name: str, location: Storage) -> Shard:
    """Scan a shard, write its member table, and return its row of the index.

    Raises `DataError`, one line, for anything that is not a complete tar of complete samples.
    """
    scan = scan_tar(folder, name)
    table = member_table(scan.samples)
    location.write(f"members/{member_file(name)}", encode_table(table))
    height, width = scan.sizes.pop() if len(scan.sizes) == 1 else (0, 0)
    grey = [sample.key for sample, channels in zip(scan.samples, scan.channels, strict=True) if channels == 1]
    colour = next((s.key for s, channels in zip(scan.samples, scan.channels, strict=True) if channels > 1), "")
    colours = (len(grey), grey[0] if grey else "", colour)
    channels, crc = max(scan.channels, default=0), _checksum(table)
    row = (len(scan.samples), scan.bytes, scan.etag, crc, channels, height, width, scan.labels)
    return Shard(name, *row, *colours)


def member_table(samples: list[Sample]) -> pa.Table:
    """The member table of a shard."""
    columns: dict[str, pa.Array] = {"key": pa.array([sample.key for sample in samples], pa.string())}
    for extension in sorted({extension for sample in samples for extension in sample.members}):
        members = [sample.members.get(extension) for sample in samples]
        for field, kind in (("offset", pa.int64()), ("size", pa.int64()), ("crc32", pa.uint32())):
            values = [None if member is None else getattr(member, field) for member in members]
            columns[f"{extension}.{field}"] = pa.array(values, kind)
    return pa.table(columns)


def describe(shards: Iterable[Shard], levels: int, class_names: tuple[str, ...], url: str) -> Meta:
    """The format of the images of some shards. Raises `DataError` if their labels do not fit together."""
    full = [shard for shard in shards if shard.images]
    if not full:
        raise DataError(f"{url}: the shards hold no images")
    classes = max(shard.classes for shard in full)
    if classes and any(not shard.classes for shard in full):
        without = next(shard.name for shard in full if not shard.classes)
        raise DataError(f"{url}: {without} has no labels, but other shards do")
    if class_names and len(class_names) < classes:
        beyond = next(shard.name for shard in full if shard.classes == classes)
        names = f"{len(class_names)} class names"
        raise DataError(f"{url}: {beyond}: label {classes - 1} is outside the {names}")
    shapes = {(shard.height, shard.width) for shard in full}
    height, width = shapes.pop() if len(shapes) == 1 else (0, 0)
    channels = max(shard.channels for shard in full)
    return Meta(channels, height, width, levels, max(classes, len(class_names)), class_names)


def _known(folder: str, location: str) -> tuple[Meta | None, dict[str, Shard]]:
    """The existing index; nothing if there is none or it is damaged."""
    try:
        meta, table = read_index(folder, location)
    except (DataError, MissingError):
        return None, {}
    return meta, {row["name"]: Shard(**row) for row in table.to_pylist()}


def _unchanged(known: Shard | None, entry: Entry) -> bool:
    return known is not None and known.etag != "" and (known.bytes, known.etag) == (entry.size, entry.etag)


def _is_shard(path: str) -> bool:
    return path.endswith(".tar") and not any(part.startswith(".") for part in path.split("/"))


def _checksum(table: pa.Table) -> int:
    crc = zlib.crc32("\n".join(table.column("key").to_pylist()).encode())
    for name in table.column_names:
        if name.endswith((".size", ".crc32")):
            column = numbers(table.column(name))
            crc = zlib.crc32(column.tobytes(), zlib.crc32(name.encode(), crc))
    return crc
