"""Encode one shard: its tar of arrays, its table of scalars, and last the member table, which makes it complete."""

from __future__ import annotations

import io
import re
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cluster.storage.storage import Storage
from datasets.encoding.encoder import Encoder, EncoderName, Samples, SetName, open_encoder, reads_of
from datasets.errors import DataError
from datasets.npy import FloatType, as_stored, encode_npy
from datasets.order.order import Range
from datasets.reading.shard_reader import EncodedRange, ShardReader, image_crcs
from datasets.shards.column_tables import write_columns
from datasets.shards.encoded import (
    SOURCE,
    SUFFIX,
    EncodedShard,
    ShardRecord,
    source_crcs,
    write_record,
)
from datasets.shards.index import Index
from datasets.shards.index_files import encode_table
from datasets.shards.member_tables import checksum
from datasets.shards.tar import Member

Places = dict[str, dict[str, Member]]  # of the members, by key and extension
_FIELD = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)*")
_READ = 256  # samples of a range request


class EncodeJob(NamedTuple):
    """How every shard of a set is encoded."""

    given: SetName  # the set
    out: str  # URL
    encoder: EncoderName
    hash: str  # of the encoder
    batch: int  # samples
    dtype: FloatType  # of floats
    skip_bad: bool  # leave out samples that cannot be encoded, or raise


def encode_shard(job: EncodeJob, number: int) -> ShardRecord:
    """Encode shard `number` of the set. Its bytes are a function of the shard, the encoder and the job's options.

    Raises `DataError` for a sample that cannot be encoded, unless such samples are left out.
    """
    encoder, index = open_encoder(job.encoder, job.given)
    out, shard = Storage(job.out), index.shard(number)
    rows = _Rows(job.dtype)
    reader = ShardReader(index, members=reads_of(encoder).members)
    with tempfile.TemporaryDirectory(prefix="encoding-") as folder:
        path, entry = Path(folder, "tar"), None
        places = _write(path, _encoded(index, number, reader, encoder, job, rows))
        if places:
            out.write(shard.name, path)
            entry = out.stat(shard.name)
    sources = source_crcs(index.members(number), image_crcs(index, number), reads_of(encoder))
    table = _member_table(places, rows, sources)
    columns = rows.column_table()
    if columns is not None:
        write_columns(out, shard.name, columns)
    crc32 = zlib.crc32(encode_table(columns) if columns is not None else b"", checksum(table.drop_columns(SOURCE)))
    size, etag = (entry.size, entry.etag) if entry else (0, "")
    row = EncodedShard(shard.name, table.num_rows, len(rows.bad), size, etag, crc32, shard.crc32)
    record = ShardRecord(row, job.hash, rows.fields, [list(pair) for pair in rows.bad])
    write_record(out, table, record)
    return record


class _Rows:
    """The samples of a shard while they are encoded."""

    def __init__(self, dtype: FloatType):
        self.dtype = dtype
        self.keys: list[str] = []
        self.numbers: list[int] = []  # rows of the samples in the set's shard
        self.fields: dict[str, str] = {}
        self.scalars: dict[str, list[Any]] = {}
        self.bad: list[tuple[str, str]] = []

    def add(self, key: str, number: int, values: dict[str, Any]) -> dict[str, bytes]:
        """Add a sample; returns its members by extension. Raises ValueError for values that cannot be stored."""
        stored: dict[str, Any] = {}
        for name, value in values.items():
            if not _FIELD.fullmatch(name):
                raise ValueError(
                    f"{name!r}: fields are named by lower-case letters, digits and _, in parts joined by ."
                )
            if value is None:
                continue
            array = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
            kind = "array" if array.ndim else "scalar"
            if self.fields.setdefault(name, kind) != kind:
                raise ValueError(f"{name} is a number for some samples and an array for others")
            try:
                stored[name] = as_stored(array, self.dtype) if array.ndim else array.item()
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
        for name, kind in self.fields.items():
            if kind == "scalar":
                column = self.scalars.setdefault(name, [])
                column += [None] * (len(self.keys) - len(column)) + [stored.get(name)]
        self.keys.append(key)
        self.numbers.append(number)
        return {f"{name}{SUFFIX}": encode_npy(array) for name, array in stored.items() if self.fields[name] == "array"}

    def column_table(self) -> pa.Table | None:
        """The scalars by key; None if there are none."""
        if not self.scalars:
            return None
        padded = {name: values + [None] * (len(self.keys) - len(values)) for name, values in self.scalars.items()}
        return pa.table({"key": pa.array(self.keys, pa.string())} | dict(sorted(padded.items())))


def _encoded(
    index: Index, number: int, reader: ShardReader, encoder: Encoder, job: EncodeJob, rows: _Rows
) -> Iterator[tuple[str, dict[str, bytes]]]:
    """The keys and members of the samples of a shard, batch by batch."""
    images, first = int(index.counts[number]), int(index.counts[:number].sum())
    for start in range(0, images, job.batch):
        stop = min(start + job.batch, images)
        taken, samples = _read(index, reader, encoder, Range(number, start, stop), first, rows, job.skip_bad)
        if not taken:
            continue
        results = encoder(samples)
        for name, values in results.items():
            if len(values) != len(taken):
                raise DataError(
                    f"{index.where(number)}: the encoder made {len(values)} values of {name} from {len(taken)} samples"
                )
        for i, (row, key) in enumerate(zip(taken, samples.keys, strict=True)):
            try:
                found = rows.add(key, row, {name: values[i] for name, values in results.items()})
            except ValueError as error:
                raise DataError(f"{index.where(number)}: sample {key!r}: {error}") from error
            if found:
                yield key, found


def _read(
    index: Index, reader: ShardReader, encoder: Encoder, wanted: Range, first: int, rows: _Rows, skip_bad: bool
) -> tuple[list[int], Samples]:
    """The rows and the contents of the samples of a range that can be read; the others are added to `rows.bad`."""
    reads = reads_of(encoder)
    taken: list[int] = []
    samples = Samples([], np.zeros(0, np.int64), [], {extension: [] for extension in reads.members})
    for start in range(wanted.start, wanted.stop, _READ):
        held = reader.read(Range(wanted.shard, start, min(start + _READ, wanted.stop)))
        for row in range(held.rows.stop - held.rows.start):
            try:
                image = reader.decode(held, row, index.format._replace(height=0, width=0)) if reads.image else None
                found = {name: _bytes(reader, held, row, name) for name in reads.members}
            except DataError as error:
                shard, key = reader.where(held, row)
                if not skip_bad:
                    raise DataError(
                        f"{shard}: sample {key!r}: {error}; --on-bad skip leaves such samples out"
                    ) from error
                rows.bad.append((key, str(error)))
                continue
            taken.append(start + row)
            samples.keys.append(reader.where(held, row)[1])
            for name, data in found.items():
                samples.members[name].append(data)
            if image is not None:
                samples.images.append(image)
    return taken, samples._replace(positions=np.array(taken, dtype=np.int64) + first)


def _bytes(reader: ShardReader, held: EncodedRange, row: int, extension: str) -> bytes | None:
    data = reader.member(held, row, extension)
    return None if data is None else bytes(data)


def _member_table(places: Places, rows: _Rows, sources: NDArray[np.uint32]) -> pa.Table:
    """Where the members of each sample are in the tar."""
    columns: dict[str, pa.Array] = {
        "key": pa.array(rows.keys, pa.string()),
        SOURCE: pa.array(sources[rows.numbers], pa.uint32()),
    }
    for extension in sorted({extension for members in places.values() for extension in members}):
        found = [places.get(key, {}).get(extension) for key in rows.keys]
        for i, (field, kind) in enumerate((("offset", pa.int64()), ("size", pa.int64()), ("crc32", pa.uint32()))):
            columns[f"{extension}.{field}"] = pa.array([member and member[i] for member in found], kind)
    return pa.table(columns)


def _write(path: Path, samples: Iterator[tuple[str, dict[str, bytes]]]) -> Places:
    """Write a tar whose bytes are a function of the samples. Returns where the members of each are, by extension."""
    places: Places = {}
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for key, found in samples:
            for extension, data in found.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size, info.mode = len(data), 0o444
                tar.addfile(info, io.BytesIO(data))
                tar.members = []  # type: ignore[attr-defined]  # else tarfile keeps them all
                padded = -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                places.setdefault(key, {})[extension] = Member(tar.offset - padded, len(data), zlib.crc32(data))
    return places
