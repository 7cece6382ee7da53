"""Make or update the index of shards."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from cluster.storage.errors import MissingError, TooLargeError
from cluster.storage.storage import Entry, Storage
from datasets.errors import DataError
from datasets.images.decode import IMAGE_FORMATS, LABEL
from datasets.shards.bad_samples import BadSamplesError, check_quarantine
from datasets.shards.column_tables import KEY, write_columns
from datasets.shards.index_files import (
    QUARANTINE_SCHEMA,
    Meta,
    Shard,
    encode_table,
    member_file,
    read_meta,
    read_quarantine,
    read_schema,
    read_shards,
    shards_of,
    write_index,
)
from datasets.shards.labels import LabelSource, names_of_classes
from datasets.shards.member_tables import checksum, damaged_tables
from datasets.shards.parquet_columns import PARQUET, parquet_columns
from datasets.shards.sample_columns import class_names, column_table, common_schema
from datasets.shards.scan import HASH, JSON, BadSample, Sample, ScanOptions, scan_tar
from datasets.shards.shard_list import ShardList
from datasets.shards.unfinished import Unfinished

_COMPRESSED = re.compile(r"\.(tar\.(gz|bz2|xz|zst|lz4)|tgz)$")
_INDEX = "/index/index.json"  # of a set in a folder below
_MAX_EXTENSIONS = 64  # that have columns in a member table


class IndexOptions(NamedTuple):
    """How a set is indexed; None: as in the existing index."""

    levels: int | None = None  # L, for pixel values 0..L-1; 256 in a new index
    class_names: tuple[str, ...] | None = None  # (): none
    image: str | None = None  # extension of the member that is the image; "": the only one of each sample
    labels: str | None = None  # json.FIELD with the labels; "": the .cls members
    named_labels: bool | None = None  # labels are class names, not numbers
    columns: tuple[str, ...] | None = None  # added to those of the existing index; (): none; see `ScanOptions.columns`
    on_bad: Literal["quarantine", "stop"] = "quarantine"  # leave samples out that cannot be used, or raise
    max_bad: float = 0.5  # largest fraction of samples, and of shards, that may be bad


class ScannedShard(NamedTuple):
    """The row of a shard, and its samples that cannot be used."""

    shard: Shard
    bad: tuple[BadSample, ...]
    scattered: int  # samples whose members are not adjacent
    columns: pa.Schema  # of its column table
    problem: str = ""  # why its columns of a Parquet file are missing


class Indexed(NamedTuple):
    """The index, and how many shards were read for it."""

    meta: Meta
    shards: list[Shard]
    scanned: int  # the others were in the index already and have not changed
    quarantine: pa.Table  # see `QUARANTINE_SCHEMA`
    compressed: list[str]  # names of tars in the folder that were left out
    scattered: int  # samples whose members are not adjacent, in the shards that were read
    lost: bool  # the existing index.json was damaged: what it said of levels and class names is lost
    problems: list[str]  # why columns of Parquet files are missing, for some shards that were read


ScanAll = Callable[[str, list[str], str, ScanOptions], Iterable[ScannedShard]]


def index_shards(
    url: str,
    location: str,
    options: IndexOptions = IndexOptions(),  # noqa: B008  (immutable)
    scan_all: ScanAll | None = None,
    progress: Callable[[int], object] = lambda shards: None,
) -> Indexed:
    """Bring the index at `location` of the folder or pattern `url` up to date.

    Only shards that are new, have another size or ETag, or whose tables are damaged or lack a column, are read; what
    an interrupted run has read is kept. `scan_all(folder, names, location, options)` scans shards and writes their
    member and column tables (default: one after another in this process). Samples that cannot be used are listed in
    the index. Raises `BadSamplesError` if they are too many, or any with `on_bad="stop"`, and `DataError` for shards
    that do not fit together.
    """
    _check_options(options)
    wanted = ShardList.parse(url)
    entries, compressed = list_shards(wanted)
    known = _Known.read(wanted.folder, location)
    before, how = known.meta, _scan_options(known.meta, options)
    if before and before.selection:
        raise DataError(f"{location}: is a selection ({before.selection}): update the index that it is of, then select")
    unfinished = Unfinished(Storage(location), how)
    rows = _Rows(*known.rows(location, how))
    rows.add_newer(*unfinished.read(), entries)
    stale = _stale(rows.shards, entries)
    rows.remove({*stale} if wanted.names else {*stale, *(rows.shards.keys() - entries.keys())})
    progress(len(entries) - len(stale))
    try:
        for scanned in (scan_all or scan_one_by_one)(wanted.folder, stale, location, how):
            rows.add(scanned)
            progress(1)
            if unfinished.is_due():
                unfinished.write(*rows.result(), rows.columns)
        for scanned in _without_labels(rows, wanted.folder, location, how, scan_all or scan_one_by_one):
            rows.add(scanned)
    except BaseException:
        if rows.added:
            unfinished.write(*rows.result(), rows.columns)
        raise
    shards, quarantine = rows.result()
    try:
        meta = _meta(before, how, options, shards, url, class_names(rows.columns))
        check_quarantine(wanted.folder, shards, quarantine, options.on_bad == "stop", options.max_bad)
    except DataError:
        unfinished.write(shards, quarantine, rows.columns)
        if quarantine.num_rows and not any(shard.images for shard in shards):
            raise BadSamplesError(wanted.folder, shards, quarantine, "no sample can be used") from None
        raise
    write_index(Storage(location), meta, shards, quarantine, rows.columns)
    unfinished.delete()
    return Indexed(meta, shards, len(stale), quarantine, compressed, rows.scattered, known.lost, rows.problems)


def _stale(shards: dict[str, Shard], entries: dict[str, Entry]) -> list[str]:
    """The shards to read: new or changed ones; those without a usable sample too where no shard has labels any longer,
    whose labels may have been the reason.
    """
    unchanged = {name for name, entry in entries.items() if _unchanged(shards.get(name), entry)}
    if not any(shards[name].classes for name in unchanged):
        unchanged = {name for name in unchanged if shards[name].images or not shards[name].quarantined}
    return [name for name in entries if name not in unchanged]


def _without_labels(
    rows: _Rows, folder: str, location: str, how: ScanOptions, scan_all: ScanAll
) -> Iterator[ScannedShard]:
    """Read the shards without any label again where other shards have labels: their samples cannot be used."""
    labelled = next((shard.name for shard in rows.shards.values() if shard.classes), "")
    without = [shard.name for shard in rows.shards.values() if shard.images and not shard.classes]
    if labelled and without:
        yield from scan_all(folder, without, location, how._replace(labelled=f"shard {labelled}"))


class _Rows:
    """The rows of shards and of quarantined samples while they are collected, and the columns of the samples."""

    def __init__(self, shards: dict[str, Shard], quarantine: pa.Table, columns: pa.Schema):
        self.shards = dict(shards)
        self.columns = columns
        self.added = 0
        self._scattered: dict[str, int] = {}
        self._problems: dict[str, str] = {}
        self._tables = [quarantine]

    def add_newer(
        self, shards: dict[str, Shard], quarantine: pa.Table, columns: pa.Schema, entries: dict[str, Entry]
    ) -> None:
        """Take those rows that describe the shards as they are now."""
        newer = {
            name: shard
            for name, shard in shards.items()
            if name in entries
            and _unchanged(shard, entries[name])
            and not _unchanged(self.shards.get(name), entries[name])
        }
        self.remove(set(newer))
        self.shards |= newer
        self.columns = common_schema([self.columns, columns])
        self._tables.append(_of_shards(quarantine, set(newer)))

    def remove(self, names: set[str]) -> None:
        """Remove shards."""
        if names:
            self.shards = {name: shard for name, shard in self.shards.items() if name not in names}
            self._tables = [_of_shards(table, set(self.shards)) for table in self._tables]

    def add(self, scanned: ScannedShard) -> None:
        """Add a shard that has just been read."""
        self.remove({scanned.shard.name} & self.shards.keys())
        self.added += 1
        self._scattered[scanned.shard.name] = scanned.scattered
        self._problems[scanned.shard.name] = scanned.problem
        self.shards[scanned.shard.name] = scanned.shard
        self.columns = common_schema([self.columns, scanned.columns])
        if scanned.bad:
            rows = [(scanned.shard.name, key, reason) for key, reason in scanned.bad]
            columns = [pa.array(column, pa.string()) for column in zip(*rows, strict=True)]
            self._tables.append(pa.Table.from_arrays(columns, schema=QUARANTINE_SCHEMA))

    @property
    def scattered(self) -> int:
        """Samples whose members are not adjacent, in the shards that were read."""
        return sum(self._scattered.values())

    @property
    def problems(self) -> list[str]:
        """Why columns of Parquet files are missing, for some shards that were read."""
        return [problem for problem in self._problems.values() if problem]

    def result(self) -> tuple[list[Shard], pa.Table]:
        """All rows, sorted by shard."""
        table = pa.concat_tables(self._tables).combine_chunks()
        order = pc.sort_indices(table, sort_keys=[("shard", "ascending")])
        return [self.shards[name] for name in sorted(self.shards)], table.take(order)


def _of_shards(table: pa.Table, names: set[str]) -> pa.Table:
    return table.filter(pc.is_in(table.column("shard"), value_set=pa.array(sorted(names), pa.string())))


def _check_options(options: IndexOptions) -> None:
    if options.levels is not None and not 2 <= options.levels <= 256:
        raise DataError(f"{options.levels} levels: pixel values are 0 to L-1 in 8 bits, so L is 2 to 256")
    if options.image and options.image.rpartition(".")[2] not in IMAGE_FORMATS:
        formats = ", ".join(IMAGE_FORMATS)
        raise DataError(f"{options.image!r} is no extension of an image; it ends in one of {formats}")
    if options.labels and not options.labels.startswith("json."):
        raise DataError(f"labels from {options.labels!r}: not a field of .json members, such as json.category")
    for column in options.columns or ():
        if not (column.startswith(("json.", "parquet.")) or column in (PARQUET, HASH)) or column.endswith("."):
            raise DataError(f"{column!r} is no column: json.FIELD, {PARQUET}, {PARQUET}.FIELD or {HASH}")
    if not 0 <= options.max_bad <= 1:
        raise DataError(f"{options.max_bad} is not a fraction of samples from 0 to 1")


def _scan_options(before: Meta | None, options: IndexOptions) -> ScanOptions:
    """What is read of a sample: as in the existing index where the options do not say it."""
    image = options.image if options.image is not None else before.image if before else ""
    kept = before.columns if before and options.columns != () else ()
    place, named = LabelSource(*before.labels) if before else LabelSource()
    labels = LabelSource(
        place if options.labels is None else options.labels,
        named if options.named_labels is None else options.named_labels,
    )
    return ScanOptions(image, tuple(dict.fromkeys((*kept, *(options.columns or ())))), labels)


def _meta(
    before: Meta | None, how: ScanOptions, options: IndexOptions, shards: list[Shard], url: str, found: set[str]
) -> Meta:
    levels, names = options.levels, options.class_names
    if levels is None:
        levels = before.levels if before else 256
    if names is None:
        names = before.class_names if before else ()
    if how.labels.named:
        names = names_of_classes(names, found)
    meta = describe(shards, levels, names, url)._replace(image=how.image, columns=how.columns, labels=how.labels)
    return meta._replace(binarised=before.binarised, source=before.source) if before else meta


class Listing(NamedTuple):
    """The tars in a folder."""

    shards: dict[str, Entry]  # by name
    compressed: list[str]  # names of tars that cannot be read in ranges


def list_shards(wanted: ShardList) -> Listing:
    """The .tar objects of a shard list. Raises `DataError` if there are none, or in sets of their own."""
    listed = list(Storage(wanted.folder).list())
    entries = [entry for entry in listed if _is_shard(entry.path)]
    compressed = [entry.path for entry in listed if _COMPRESSED.search(entry.path)]
    if not entries:
        other = f", but {compressed[0]}: unpack compressed tars" if compressed else ""
        raise DataError(f"{wanted.folder}: no such folder, or no .tar in it{other}")
    places = wanted.select([entry.path for entry in entries])
    sets = {entry.path.removesuffix(_INDEX) for entry in listed if entry.path.endswith(_INDEX)}
    inside = sorted({path.rpartition("/")[0] for path in (entries[place].path for place in places)} & sets)
    if inside:
        raise DataError(
            f"{wanted.folder}: holds sets with an index of their own ({', '.join(inside)}); give one of them, such as "
            f"{wanted.folder}/{inside[0]}, so that they are not mixed"
        )
    return Listing({entries[place].path: entries[place] for place in places}, [] if wanted.names else compressed)


def scan_one_by_one(folder: str, names: list[str], location: str, options: ScanOptions) -> Iterator[ScannedShard]:
    """Scan shards in this process."""
    for name in names:
        yield index_shard(Storage(folder), name, Storage(location), options)


def index_shard(
    folder: Storage,
    name: str,
    location: Storage,
    options: ScanOptions = ScanOptions(),  # noqa: B008  (immutable)
) -> ScannedShard:
    """Scan a shard, write its member and column tables, and return its row of the index and its bad samples."""
    scan = scan_tar(folder, name, options)
    table = member_table(scan.samples)
    location.write(f"members/{member_file(name)}", encode_table(table))
    columns = column_table(scan.samples, options)
    problem = ""
    if wanted := options.parquet:
        found, problem = parquet_columns(folder, name, columns.column(KEY), wanted)
        for field, values in found.items():
            columns = columns.append_column(field, values)
    write_columns(location, name, columns)
    headers = [sample.header for sample in scan.samples]
    sizes = {(header.height, header.width) for header in headers}
    height, width = sizes.pop() if len(sizes) == 1 else (0, 0)
    grey = [sample.key for sample in scan.samples if sample.header.channels == 1]
    shard = Shard(
        name,
        images=len(scan.samples),
        bytes=scan.bytes,
        etag=scan.etag,
        crc32=checksum(table),
        channels=max((header.channels for header in headers), default=0),
        height=height,
        width=width,
        classes=max((_classes(sample.label) for sample in scan.samples), default=0),
        grey=len(grey),
        grey_key=grey[0] if grey else "",
        colour_key=next((sample.key for sample in scan.samples if sample.header.channels > 1), ""),
        quarantined=sum(bad.key != "" for bad in scan.bad),
        skipped=scan.skipped,
        read_bytes=scan.bytes,
    )
    return ScannedShard(shard, tuple(scan.bad), scan.scattered, columns.schema, problem)


def _classes(label: int | str | None) -> int:
    """The least number of classes of a set with this label; of class names 1."""
    return 0 if label is None else label + 1 if isinstance(label, int) else 1


def member_table(samples: list[Sample]) -> pa.Table:
    """The member table of a shard: with columns for the most frequent extensions, and for those of images."""
    columns: dict[str, pa.Array] = {"key": pa.array([sample.key for sample in samples], pa.string())}
    for extension in _extensions(samples):
        members = [sample.members.get(extension) for sample in samples]
        for field, kind in (("offset", pa.int64()), ("size", pa.int64()), ("crc32", pa.uint32())):
            values = [None if member is None else getattr(member, field) for member in members]
            columns[f"{extension}.{field}"] = pa.array(values, kind)
    return pa.table(columns)


def _extensions(samples: list[Sample]) -> list[str]:
    counts = Counter(extension for sample in samples for extension in sample.members)
    images = {sample.image for sample in samples} | {LABEL, JSON}
    wanted = sorted(counts, key=lambda extension: (extension not in images, -counts[extension], extension))
    return sorted(wanted[:_MAX_EXTENSIONS])


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


class _Known(NamedTuple):
    """What of an existing index can be read."""

    meta: Meta | None
    shards: dict[str, Shard]
    quarantine: pa.Table
    columns: pa.Schema
    lost: bool  # there is an index.json, but it is damaged

    @classmethod
    def read(cls, folder: str, location: str) -> _Known:
        """The index at `location` without its damaged parts."""
        meta, shards, lost = None, dict[str, Shard](), False
        quarantine, columns = QUARANTINE_SCHEMA.empty_table(), common_schema([])
        try:
            meta = read_meta(location)
        except MissingError:
            return cls(None, {}, quarantine, columns, False)
        except DataError:
            lost = True
        try:
            columns = read_schema(location)  # without it, all columns are made again
            shards = shards_of(read_shards(folder, location))
        except (DataError, MissingError, TooLargeError):
            pass
        try:
            quarantine = read_quarantine(location)
        except DataError:
            shards = {name: shard for name, shard in shards.items() if not shard.quarantined}
        return cls(meta, shards, quarantine, columns, lost)

    def rows(self, location: str, how: ScanOptions) -> tuple[dict[str, Shard], pa.Table, pa.Schema]:
        """The shards, their quarantined samples and the columns; without shards that have to be read again."""
        if self.meta and (self.meta.image, self.meta.labels) != (how.image, how.labels):
            return {}, QUARANTINE_SCHEMA.empty_table(), common_schema([])
        damaged = damaged_tables(location, self.shards.values(), how.columns)
        shards = {name: shard for name, shard in self.shards.items() if name not in damaged}
        return shards, self.quarantine, self.columns


def _unchanged(known: Shard | None, entry: Entry) -> bool:
    return known is not None and known.etag != "" and (known.bytes, known.etag) == (entry.size, entry.etag)


def _is_shard(path: str) -> bool:
    return path.endswith(".tar") and not any(part.startswith(".") for part in path.split("/"))
