"""Encode a set shard by shard; what an interrupted job has completed is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

from cluster.storage.errors import MissingError, TooLargeError
from cluster.storage.storage import Storage
from datasets.encoding.encoder import Encoder, open_encoder, reads_of
from datasets.encoding.write import EncodeJob, encode_shard
from datasets.errors import DataError
from datasets.shards.column_tables import column_file, read_columns
from datasets.shards.encoded import (
    MEMBERS,
    ShardRecord,
    read_description,
    read_record,
    write_description,
    write_shards,
)
from datasets.shards.index import Index

_READERS = 8  # records that are read at once: each is a request of a remote folder
_TRIES = 3  # of encoding shards that other processes write at the same time

Each = Callable[[Callable[[int], ShardRecord], list[int]], Iterable[ShardRecord]]


class Encoded(NamedTuple):
    """The encoded set."""

    shards: int
    encoded: int  # shards that this call has encoded; the others were complete
    samples: int
    bytes: int  # of the tars
    fields: dict[str, str]  # "array" or "scalar", by name
    bad: list[tuple[str, str, str]]  # (shard, key, reason) of samples that were left out


def encode_set(job: EncodeJob, each: Each = map, progress: Callable[[int], object] = lambda samples: None) -> Encoded:
    """Encode the samples of every shard of a set that is not encoded yet, or has changed since.

    `each` maps a function over numbers of shards, possibly in other processes. Raises `DataError` if there are encoded
    shards of another encoder, other options or another set, and for samples that cannot be encoded.
    """
    encoder, index = open_encoder(job.encoder, job.given)
    out = Storage(job.out)
    description = _description(job, encoder, index)
    _check_same(out, description, index)
    write_description(out, description | {"complete": False, "fields": {}})
    records: dict[str, ShardRecord] = {}
    encoded: set[str] = set()
    for _ in range(_TRIES):
        records = _complete(job, index, out)
        progress(sum(record.shard.samples for name, record in records.items() if name not in encoded))
        left = [number for number in range(len(index)) if index.name(number) not in records]
        if not left:
            break
        for record in each(partial(encode_shard, job), left):
            encoded.add(record.shard.name)
            progress(record.shard.samples)
    else:
        raise DataError(
            f"{out.url}: another process writes there at the same time; let one of them end, then run again"
        )
    _delete_others(out, records.keys())
    ordered = [records[name] for name in sorted(records)]
    fields = _common_fields(out, ordered)
    write_shards(out, (record.shard for record in ordered))
    samples, size = (sum(getattr(record.shard, name) for record in ordered) for name in ("samples", "bytes"))
    write_description(out, description | {"complete": True, "fields": fields, "samples": samples})
    bad = [(record.shard.name, key, reason) for record in ordered for key, reason in record.bad]
    return Encoded(len(ordered), len(encoded), samples, size, fields, bad)


def _description(job: EncodeJob, encoder: Encoder, index: Index) -> dict[str, Any]:
    reads = reads_of(encoder)
    made_by = {"name": job.encoder.name, "options": dict(job.encoder.options), "hash": job.hash}
    facts: dict[str, Any] = {"encoder": made_by, "dtype": job.dtype, "batch": job.batch}
    facts |= {"image": reads.image, "reads": list(reads.members)}
    return facts | {"shards": job.given.shards, "set": index.fingerprint}


def _check_same(out: Storage, wanted: dict[str, Any], index: Index) -> None:
    """Raise `DataError` if other encoded shards are there already."""
    try:
        before = read_description(out)
    except MissingError:
        if taken := next((entry.path for entry in out.list() if entry.path.endswith(".tar")), None):
            raise DataError(f"{out.url}: holds {taken}, which is not encoded shards; give another --out") from None
        return
    if before["encoder"].get("hash") != wanted["encoder"]["hash"]:
        raise DataError(
            f"{out.url}: was made by another encoder ({before['encoder'].get('name')}, hash "
            f"{str(before['encoder'].get('hash'))[:8]}; now {wanted['encoder']['name']}, "
            f"{wanted['encoder']['hash'][:8]}); give another --out"
        )
    for name in ("dtype", "batch"):
        if before.get(name) != wanted[name]:
            raise DataError(
                f"{out.url}: was made with --{name} {before.get(name)}, now {wanted[name]}; give another --out"
            )
    if before["set"] != wanted["set"] and not _shares(out, index):
        raise DataError(f"{out.url}: was made of another set ({before.get('shards')}); give another --out")


def _shares(out: Storage, index: Index) -> bool:
    """Whether a shard of the set has been encoded here."""
    folder = out.folder(MEMBERS)
    there = {entry.path.removesuffix(".arrow") for entry in folder.list()}
    for number in range(len(index)):
        if index.name(number) in there:
            record = _record(out, index.name(number))
            if record is not None and record.shard.source_crc32 == index.shard(number).crc32:
                return True
    return not there


def _record(out: Storage, name: str) -> ShardRecord | None:
    try:
        return read_record(out, name)[1]
    except (DataError, MissingError, TooLargeError):
        return None


def _complete(job: EncodeJob, index: Index, out: Storage) -> dict[str, ShardRecord]:
    """The records of the shards that are encoded, by name."""
    there = {entry.path.removesuffix(".arrow") for entry in out.folder(MEMBERS).list()}
    numbers = [number for number in range(len(index)) if index.name(number) in there]

    def check(number: int) -> ShardRecord | None:
        shard = index.shard(number)
        record = _record(out, shard.name)
        if record is None or (record.hash, record.shard.source_crc32) != (job.hash, shard.crc32):
            return None
        return record if _is_intact(out, record) and (job.skip_bad or not record.bad) else None

    with ThreadPoolExecutor(_READERS, "records") as pool:
        found = list(pool.map(check, numbers))
    return {record.shard.name: record for record in found if record is not None}


def _is_intact(out: Storage, record: ShardRecord) -> bool:
    """Whether the tar and the table of scalars are those that belong to the member table."""
    shard = record.shard
    if shard.bytes:
        entry = out.stat(shard.name)
        if entry is None or (entry.size, entry.etag) != (shard.bytes, shard.etag):
            return False
    if "scalar" in record.fields.values():
        try:
            return bool(read_columns(out, shard.name).num_rows == shard.samples)
        except (DataError, MissingError, TooLargeError):
            return False
    return True


def _delete_others(out: Storage, names: Iterable[str]) -> None:
    """Delete what was encoded of shards that are no longer in the set."""
    kept = set(names)
    for entry in list(out.folder(MEMBERS).list()):
        name = entry.path.removesuffix(".arrow")
        if name not in kept:
            for path in (f"{MEMBERS}/{entry.path}", column_file(name), name):
                out.delete(path)


def _common_fields(out: Storage, records: list[ShardRecord]) -> dict[str, str]:
    fields: dict[str, str] = {}
    for record in records:
        for name, kind in record.fields.items():
            if fields.setdefault(name, kind) != kind:
                raise DataError(
                    f"{out.url}: {name} is a number in some shards and an array in {record.shard.name}; the encoder "
                    "has to return one or the other"
                )
    return dict(sorted(fields.items()))
