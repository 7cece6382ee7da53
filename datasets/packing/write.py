"""Write one shard: its tar, its member table, and a record that it is complete."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from cluster.storage.errors import MissingError
from cluster.storage.storage import Storage
from datasets.errors import DataError
from datasets.images.decode import LABEL
from datasets.packing.encoding import Encoded, Encoding, encode_example
from datasets.packing.sources.source import Example, Part
from datasets.shards.column_tables import column_file
from datasets.shards.index_files import Shard
from datasets.shards.indexing import index_shard

RECORDS = "index/packing"


class BadImage(NamedTuple):
    """An image that cannot be packed."""

    where: str  # its file
    reason: str


class ShardJob(NamedTuple):
    """A shard to write."""

    part: Part
    folder: str  # URL
    name: str
    first: int  # number of its first image in the split
    how: Encoding
    levels: int


class Written(NamedTuple):
    """A shard that was written, and what was not taken into it."""

    shard: Shard
    bad: tuple[BadImage, ...] = ()
    transparent: int = 0  # images that were composited on white


def write_shard(job: ShardJob) -> Written:
    """Write a shard without its bad images, its member table, and a record that it is complete."""
    folder, bad, encoded = Storage(job.folder), list[BadImage](), list[Encoded]()
    with scratch_folder(folder) as scratch:
        write_members(scratch / job.name, _samples(job, bad, encoded))
        scanned = index_shard(Storage(str(scratch)), job.name, folder.folder("index"))
        for unusable in scanned.bad:
            raise DataError(f"{folder.url}/{job.name}: {unusable.key}: {unusable.reason}")
        put_in_place(folder, scratch, job.name)
    entry = folder.stat(job.name)
    transparent = sum(image.transparent for image in encoded)
    written = Written(scanned.shard._replace(etag=entry.etag if entry else ""), tuple(bad), transparent)
    folder.write(f"{RECORDS}/{job.name}.json", json.dumps([contents(job), *written]).encode())
    return written


def kept_shards(folder: Storage, jobs: Iterable[ShardJob]) -> Iterator[Written]:
    """The complete shards of an interrupted run that have the same images, written the same way."""
    for job in jobs:
        try:
            found, row, bad, transparent = json.loads(folder.read(f"{RECORDS}/{job.name}.json"))
            shard, entry = Shard(*row), folder.stat(job.name)
        except (MissingError, ValueError, TypeError):  # the record of another version
            continue
        same = entry is not None and (entry.size, entry.etag) == (shard.bytes, shard.etag)
        if found == contents(job) and same and folder.exists(f"index/{column_file(job.name)}"):
            yield Written(shard, tuple(BadImage(*entry) for entry in bad), transparent)


def contents(job: ShardJob) -> str:
    """A shard with other contents, or written with other options, is not kept."""
    return f"{job.part.fingerprint()} {job.first} {tuple(job.how)} {job.levels}"


def write_tar(path: Path, examples: Iterable[tuple[str, Example]]) -> None:
    """Write keyed examples as a tar: image, cls, txt and json, arrays as PNG. Raises `DataError`."""
    write_members(path, ((key, _members(example, encode_example(example))) for key, example in examples))


def _samples(job: ShardJob, bad: list[BadImage], done: list[Encoded]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """The keys and members of the images that decode; the others are added to `bad`."""
    for i in range(len(job.part)):
        try:
            example = job.part.example(i)
            encoded = encode_example(example, job.how, job.levels)
        except DataError as error:
            bad.append(BadImage(job.part.where(i), str(error)))
            continue
        done.append(encoded._replace(data=b""))
        yield f"{job.first + i:08d}", _members(example, encoded)


def _members(example: Example, encoded: Encoded) -> dict[str, bytes]:
    members = {encoded.extension: encoded.data}
    if example.label is not None:
        members[LABEL] = str(example.label).encode()
    if example.caption is not None:
        members["txt"] = example.caption
    if example.fields is not None:
        members["json"] = example.fields
    return members


def write_members(path: Path, samples: Iterable[tuple[str, dict[str, bytes]]]) -> None:
    """Write a tar with webdataset's own writer. Its bytes are a function of the samples."""
    from webdataset import TarWriter

    with path.open("wb") as stream, TarWriter(stream, user="", group="", mtime=0, encoder=False) as tar:
        for key, members in samples:
            tar.write({"__key__": key, **members})


def put_in_place(folder: Storage, scratch: Path, name: str) -> None:
    """Move or send a file of the scratch folder to its folder, whole or not at all."""
    local = folder.local_path(name)
    if local is None:
        folder.write(name, scratch / name)
    else:
        os.replace(scratch / name, local)


@contextlib.contextmanager
def scratch_folder(folder: Storage) -> Iterator[Path]:
    """A temporary folder: next to a local destination, so that the shard can be renamed into place."""
    local = folder.local_path()
    if local is not None:
        local.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".packing-", dir=local) as scratch:
        yield Path(scratch)
