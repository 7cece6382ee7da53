"""Pack a source into shards with an index: <out>/train/, <out>/validation/ and <out>/test/, each a set of its own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from cluster.storage.errors import MissingError
from cluster.storage.storage import Storage
from datasets.errors import DataError
from datasets.packing.encoding import Encoding, check_encoding, encode_example
from datasets.packing.record import Record, read_record
from datasets.packing.sources.source import Part, Source
from datasets.packing.write import RECORDS, BadImage, ShardJob, Written, kept_shards, write_shard
from datasets.shards.column_tables import column_file
from datasets.shards.index import Index
from datasets.shards.index_files import QUARANTINE_SCHEMA, Meta, Shard, member_file, write_index
from datasets.shards.indexing import describe
from datasets.shards.sample_columns import SCHEMA

MIN_SHARDS = 8  # a small set, too, is shuffled over shards
MAX_IMAGES = 10_000  # of a shard
_BEGUN = f"{RECORDS}/begun"  # exists while a split is packed
_PROBED = 64  # images whose mean encoded size decides the images of a shard of `shard_bytes`


class PackOptions(NamedTuple):
    """How a set is written."""

    shard_images: int | None = None  # images per shard; None: an eighth of the set, at most 10,000
    shard_bytes: int | None = None  # or bytes per shard, approximately
    how: Encoding = Encoding()
    skip_bad: bool = False  # leave out images that cannot be packed; False: raise `BadImagesError`


class Packed(NamedTuple):
    """The shards of a split."""

    split: str
    url: str
    shards: int
    images: int
    bytes: int
    written: bool  # False: they were complete already
    bad: tuple[BadImage, ...] = ()  # left out
    transparent: int = 0  # composited on white
    compared: bool = True  # with the source; False: an earlier version packed them, without a record of it


class BadImagesError(DataError):
    """Images that cannot be packed."""

    def __init__(self, bad: tuple[BadImage, ...], images: int) -> None:
        self.bad = bad
        first = f"{bad[0].where}: {bad[0].reason}"
        super().__init__(
            f"{len(bad):,} of {images:,} images cannot be packed, first {first}; "
            "repair or remove them, or leave them out by --on-bad skip"
        )


Each = Callable[[Callable[[ShardJob], Written], list[ShardJob]], Iterable[Written]]


def pack(
    source: Source,
    out: str,
    options: PackOptions = PackOptions(),  # noqa: B008  (immutable)
    progress: Callable[[int], object] = lambda images: None,
    each: Each = map,
) -> list[Packed]:
    """Write the splits of a source as WebDataset shards (image, cls, txt, json) with their indexes.

    The bytes of the tars are a function of the images. A split that is complete, from the same images with the same
    options, is left alone; of an interrupted one the complete shards of unchanged images are kept. `progress` is called
    with numbers of images written. `each` maps `write_shard` over the jobs, possibly in other processes. Raises
    `DataError` if `out` has another set, and `BadImagesError`, after all images were read, if some cannot be packed.
    """
    meta = source.meta
    if meta is not None:
        check_encoding(options.how, meta.levels, meta.height, meta.width)
    splits = [split for split in source.splits if source.count(split)]
    return [_pack_split(source, split, Storage(out).folder(split), options, progress, each) for split in splits]


def _pack_split(
    source: Source,
    split: str,
    folder: Storage,
    options: PackOptions,
    progress: Callable[[int], object],
    each: Each,
) -> Packed:
    images = source.count(split)
    whole = source.part(split, 0, images)
    record = Record(source.name, whole.fingerprint(), _recorded(options))
    if finished := _finished(folder, source, split, record):
        if finished.bad and not options.skip_bad:
            raise BadImagesError(finished.bad, images)
        progress(images)
        return finished
    jobs = _jobs(source, split, folder, options)
    _discard_others(folder, {job.name for job in jobs})
    done: dict[str, Written] = {}
    for written in _write_all(folder, jobs, each):
        done[written.shard.name] = written
        progress(written.shard.images + len(written.bad))
    bad = tuple(entry for job in jobs for entry in done[job.name].bad)
    if bad and not options.skip_bad:
        raise BadImagesError(bad, images)
    shards = [done[job.name].shard for job in jobs if done[job.name].shard.images]
    transparent = sum(written.transparent for written in done.values())
    if not shards:
        raise BadImagesError(bad, images)
    record._replace(bad=bad, transparent=transparent).write(folder)
    none = QUARANTINE_SCHEMA.empty_table()
    write_index(folder.folder("index"), _meta(source, shards, folder.url), shards, none, SCHEMA)
    folder.delete(_BEGUN)
    for job in jobs:
        folder.delete(f"{RECORDS}/{job.name}.json")
        if not done[job.name].shard.images:
            folder.delete(job.name)
            folder.delete(f"index/members/{member_file(job.name)}")
            folder.delete(f"index/{column_file(job.name)}")
    size = sum(shard.bytes for shard in shards)
    return Packed(split, folder.url, len(shards), images - len(bad), size, True, bad, transparent)


def _recorded(options: PackOptions) -> dict[str, Any]:
    """The options that decide the bytes of the shards, as JSON has them."""
    fields = {"shard_images": options.shard_images, "shard_bytes": options.shard_bytes} | options.how._asdict()
    recorded: dict[str, Any] = json.loads(json.dumps(fields))
    return recorded


def _write_all(folder: Storage, jobs: list[ShardJob], each: Each) -> Iterator[Written]:
    kept = set()
    for written in kept_shards(folder, jobs):
        kept.add(written.shard.name)
        yield written
    yield from each(write_shard, [job for job in jobs if job.name not in kept])


def _jobs(source: Source, split: str, folder: Storage, options: PackOptions) -> list[ShardJob]:
    images, levels = source.count(split), source.meta.levels if source.meta else 256
    size = _images_of_shard(source.part(split, 0, images), options, levels)
    return [
        ShardJob(
            source.part(split, start, min(start + size, images)),
            folder.url,
            f"{number:06d}.tar",
            start,
            options.how,
            levels,
        )
        for number, start in enumerate(range(0, images, size))
    ]


def _meta(source: Source, shards: list[Shard], url: str) -> Meta:
    """The format of what was written."""
    names = source.class_names if any(shard.classes for shard in shards) else ()
    meta = describe(shards, source.meta.levels if source.meta else 256, names, url)
    return meta._replace(source=source.name, binarised=source.meta.binarised if source.meta else "")


def _finished(folder: Storage, source: Source, split: str, wanted: Record) -> Packed | None:
    """The shards of a complete split. Raises `DataError` if it is of other images or options."""
    try:
        if not folder.exists("index/index.json"):
            return None
    except MissingError:
        return None
    index, found = Index.open(folder.url), read_record(folder)
    left_out = len(found.bad) if found else 0
    if found is not None:
        wanted.check(found, folder.url)
    if index.images + left_out != source.count(split) or (source.meta and index.meta.source != source.name):
        raise DataError(f"{folder.url}: contains another set ({index.meta.source}, {index.images:,} images)")
    size = sum(index.shard(number).bytes for number in range(len(index)))
    bad, transparent = (found.bad, found.transparent) if found else ((), 0)
    return Packed(
        split, folder.url, len(index), index.images, size, False, bad, transparent, compared=found is not None
    )


def _discard_others(folder: Storage, names: set[str]) -> None:
    """Delete shards of an interrupted run that had other shards. Raises `DataError` for tars of somebody else."""
    try:
        listed = {entry.path for entry in folder.list()}
    except MissingError:
        listed = set()
    tars = {path for path in listed if path.endswith(".tar") and "/" not in path}
    if tars and not any(path.startswith(f"{RECORDS}/") for path in listed):
        raise DataError(f"{folder.url}: holds tars that were not packed here ({min(tars)}); give another --out")
    folder.write(_BEGUN, b"")
    for name in tars - names:
        folder.delete(name)
        folder.delete(f"{RECORDS}/{name}.json")


def _images_of_shard(part: Part, options: PackOptions, levels: int) -> int:
    if not options.shard_bytes:
        return options.shard_images or max(1, min(MAX_IMAGES, -(-len(part) // MIN_SHARDS)))
    sizes = []
    for i in range(min(_PROBED, len(part))):
        try:
            sizes.append(len(encode_example(part.example(i), options.how, levels).data))
        except DataError:  # reported when its shard is written
            continue
    mean = 512 + sum(sizes) / max(len(sizes), 1) + 1024  # header, padding and label
    return max(1, int(options.shard_bytes / mean))
