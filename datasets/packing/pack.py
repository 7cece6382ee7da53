"""Pack a source into shards with an index: <out>/train/ and <out>/validation/, each a data set of its own."""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from cluster.storage.errors import MissingError
from cluster.storage.storage import Storage
from datasets.config import TransformConfig
from datasets.errors import DataError
from datasets.images.decode import LABEL, Format, Pixels, decode_image, image_size
from datasets.images.transform import Transform
from datasets.packing.sources.source import SPLITS, Example, Source
from datasets.shards.index import Index
from datasets.shards.index_files import Meta, Shard, write_index
from datasets.shards.indexing import describe, index_shard

MIN_SHARDS = 8  # a small set, too, is shuffled over shards
MAX_IMAGES = 10_000  # of a shard
_PROBED = 64  # images whose mean encoded size decides the images of a shard of `shard_bytes`


class PackOptions(NamedTuple):
    """How images are written."""

    shard_images: int | None = None  # images per shard; None: an eighth of the set, at most 10,000
    shard_bytes: int | None = None  # or bytes per shard, approximately
    size: tuple[int, int] | None = None  # (height, width): resize to cover it and crop the centre
    encoding: str | None = None  # png, jpg or webp; None: files unchanged, arrays as png
    quality: int = 90  # of jpg and webp


class Packed(NamedTuple):
    """The shards of a split."""

    split: str
    url: str
    shards: int
    images: int
    bytes: int
    written: bool  # False: they were complete already


class ShardJob(NamedTuple):
    """A shard to write: images [start, stop) of a split."""

    source: Source
    split: str
    folder: str  # URL
    name: str
    start: int
    stop: int
    options: PackOptions


Each = Callable[[Callable[[ShardJob], Shard], list[ShardJob]], Iterable[Shard]]


def pack(
    source: Source,
    out: str,
    options: PackOptions = PackOptions(),  # noqa: B008  (immutable)
    progress: Callable[[int], object] = lambda images: None,
    each: Each = map,
) -> list[Packed]:
    """Write the splits of a source as WebDataset shards (image, cls, txt) with their indexes.

    The bytes of the tars are a function of the images. A complete split (it has an index) is left alone; of an
    interrupted one the complete shards are kept. `progress` is called with numbers of images written. `each` maps
    `write_shard` over the jobs, possibly in other processes. Raises `DataError` if `out` has another set.
    """
    splits = [split for split in SPLITS if source.count(split)]
    return [_pack_split(source, split, Storage(out).folder(split), options, progress, each) for split in splits]


def _pack_split(
    source: Source,
    split: str,
    folder: Storage,
    options: PackOptions,
    progress: Callable[[int], object],
    each: Each,
) -> Packed:
    if finished := _finished(folder, source, split):
        progress(finished.images)
        return finished
    images, size = source.count(split), _images_of_shard(source, split, options)
    starts = range(0, images, size)
    jobs = [
        ShardJob(source, split, folder.url, f"{number:06d}.tar", start, min(start + size, images), options)
        for number, start in enumerate(starts)
    ]
    rows = {shard.name: shard for shard in _kept(folder, jobs)}
    progress(sum(shard.images for shard in rows.values()))
    for shard in each(write_shard, [job for job in jobs if job.name not in rows]):
        rows[shard.name] = shard
        progress(shard.images)
    shards = [rows[job.name] for job in jobs]
    meta = source.meta or describe(shards, 256, source.class_names, folder.url)._replace(source=source.name)
    write_index(folder.folder("index"), meta, shards)
    for job in jobs:
        folder.delete(_record_file(job.name))
    return Packed(split, folder.url, len(shards), images, sum(shard.bytes for shard in shards), written=True)


def _finished(folder: Storage, source: Source, split: str) -> Packed | None:
    try:
        if not folder.exists("index/index.json"):
            return None
    except MissingError:
        return None
    index = Index.open(folder.url)
    if not _same(index.meta, source) or index.images != source.count(split):
        raise DataError(f"{folder.url}: contains another set ({index.meta.source}, {index.images:,} images)")
    sizes = sum(index.shard(number).bytes for number in range(len(index)))
    return Packed(split, folder.url, len(index), index.images, sizes, written=False)


def _same(meta: Meta, source: Source) -> bool:
    return meta == source.meta if source.meta else (meta.source, meta.class_names) == (source.name, source.class_names)


def _images_of_shard(source: Source, split: str, options: PackOptions) -> int:
    images = source.count(split)
    if options.shard_bytes:
        probed = [_encoded(source.example(split, i), options) for i in range(min(_PROBED, images))]
        mean = sum(512 + len(data) + 1024 for data, _ in probed) / len(probed)  # header, padding and label
        return max(1, int(options.shard_bytes / mean))
    return options.shard_images or max(1, min(MAX_IMAGES, -(-images // MIN_SHARDS)))


# ---- one shard


def write_shard(job: ShardJob) -> Shard:
    """Write a shard, its member table, and a record that it is complete."""
    folder = Storage(job.folder)
    with _scratch(folder) as scratch:
        write_tar(
            scratch / job.name,
            ((f"{i:08d}", job.source.example(job.split, i)) for i in range(job.start, job.stop)),
            job.options,
        )
        shard = index_shard(Storage(str(scratch)), job.name, folder.folder("index"))
        local = folder.local_path(job.name)
        if local is None:
            folder.write(job.name, scratch / job.name)
        else:
            os.replace(scratch / job.name, local)
    entry = folder.stat(job.name)
    shard = shard._replace(etag=entry.etag if entry else "")
    folder.write(_record_file(job.name), json.dumps([_contents(job), shard]).encode())
    return shard


def _kept(folder: Storage, jobs: list[ShardJob]) -> Iterator[Shard]:
    """The complete shards of an interrupted run."""
    for job in jobs:
        try:
            contents, row = json.loads(folder.read(_record_file(job.name)))
            shard, entry = Shard(*row), folder.stat(job.name)
        except (MissingError, ValueError, TypeError):  # the record of another version
            continue
        if contents == _contents(job) and entry is not None and (entry.size, entry.etag) == (shard.bytes, shard.etag):
            yield shard


def _contents(job: ShardJob) -> str:
    """What a shard should contain: a shard that was packed with other options is not kept."""
    return f"{job.source.name} {job.split} {job.start} {job.stop} {tuple(job.options)}"


def _record_file(name: str) -> str:
    return f"index/packing/{name}.json"


@contextlib.contextmanager
def _scratch(folder: Storage) -> Iterator[Path]:
    """A temporary folder: next to a local destination, so that the shard can be renamed into place."""
    local = folder.local_path()
    if local is not None:
        local.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".packing-", dir=local) as scratch:
        yield Path(scratch)


def write_tar(
    path: Path,
    examples: Iterable[tuple[str, Example]],
    options: PackOptions = PackOptions(),  # noqa: B008  (immutable)
) -> None:
    """Write keyed examples as a tar, with webdataset's own writer."""
    from webdataset import TarWriter

    with path.open("wb") as stream, TarWriter(stream, user="", group="", mtime=0, encoder=False) as tar:
        for key, example in examples:
            data, extension = _encoded(example, options)
            members: dict[str, str | bytes] = {"__key__": key, extension: data}
            if example.label is not None:
                members[LABEL] = str(example.label).encode()
            if example.caption is not None:
                members["txt"] = example.caption
            tar.write(members)


# ---- one image


def _encoded(example: Example, options: PackOptions) -> tuple[bytes, str]:
    """The encoded image and its extension."""
    image = example.image
    if isinstance(image, bytes):
        if options.size is None and options.encoding in (None, example.extension):
            return image, example.extension
        _, _, channels = image_size(image, example.extension)
        image = decode_image(image, example.extension, Format(channels, 0, 0))
    if options.size is not None:
        image = Transform(TransformConfig(size=options.size), Format(image.shape[2], 0, 0), None)(image, 0)
    extension = options.encoding or (example.extension if isinstance(example.image, bytes) else "png")
    return encode(image, extension, options.quality), extension


def encode_png(image: Pixels) -> bytes:
    """Encode an image, uint8 [H, W, C] with one or three channels, as PNG; levels are stored as pixel values."""
    return encode(image, "png")


def encode(image: Pixels, extension: str, quality: int = 90) -> bytes:
    """Encode an image, uint8 [H, W, C] with one or three channels, as PNG (levels as pixel values), JPEG or WebP."""
    formats = {"png": "PNG", "jpg": "JPEG", "jpeg": "JPEG", "webp": "WEBP"}
    if extension not in formats:
        raise DataError(f"images cannot be written as {extension!r}; supported: {', '.join(formats)}")
    stream = io.BytesIO()
    picture = Image.fromarray(np.ascontiguousarray(image[:, :, 0] if image.shape[2] == 1 else image))
    picture.save(stream, formats[extension], **({} if extension == "png" else {"quality": quality}))
    return stream.getvalue()
