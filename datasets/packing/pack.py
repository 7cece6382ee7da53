"""From a source to shards and their index: <out>/train/ and <out>/validation/, each a data set of its own."""

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

SHARDS_AT_LEAST = 8  # so that a small set, too, is shuffled over shards
IMAGES_AT_MOST = 10_000
_PROBED = 64  # images whose encoded size tells how many go into a shard of so many bytes


class PackOptions(NamedTuple):
    """How images are written."""

    shard_images: int | None = None  # images a shard; None: an eighth of the set, at most 10,000
    shard_bytes: int | None = None  # or as many as come near to this
    size: tuple[int, int] | None = None  # (height, width): resized to cover it and cut to the centre
    encoding: str | None = None  # png, jpg or webp; None: files as they are, arrays as png
    quality: int = 90  # of jpg and webp


class Packed(NamedTuple):
    """What was written, or found already there, for a split."""

    split: str
    url: str
    shards: int
    images: int
    bytes: int
    written: bool  # False: it was there


class ShardJob(NamedTuple):
    """A shard to be written: images [start, stop) of a split."""

    source: Source
    split: str
    folder: str  # URL
    name: str
    start: int
    stop: int
    options: PackOptions


def pack(
    source: Source,
    out: str,
    options: PackOptions = PackOptions(),  # noqa: B008  (immutable)
    progress: Callable[[int], object] = lambda images: None,
    each: Callable[[Callable[[ShardJob], Shard], list[ShardJob]], Iterable[Shard]] = map,
) -> list[Packed]:
    """Write the splits of a source as WebDataset shards (image, cls, txt) with their indexes.

    The bytes of the tars depend on nothing but the images. A split that is finished, which its index says, is left
    alone; of one that was interrupted the shards that are whole are kept. `progress` is told of images written.
    `each` maps the jobs, in other processes perhaps. Raises `DataError` if another set is there.
    """
    splits = [split for split in SPLITS if source.count(split)]
    return [_pack_split(source, split, Storage(out).folder(split), options, progress, each) for split in splits]


def _pack_split(source, split, folder, options, progress, each) -> Packed:  # type: ignore[no-untyped-def]
    if there := _finished(folder, source, split):
        progress(there.images)
        return there
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
        folder.delete(_row_file(job.name))
    return Packed(split, folder.url, len(shards), images, sum(shard.bytes for shard in shards), written=True)


def _finished(folder: Storage, source: Source, split: str) -> Packed | None:
    try:
        if not folder.exists("index/index.json"):
            return None
    except MissingError:
        return None
    index = Index.open(folder.url)
    if not _same(index.meta, source) or index.images != source.count(split):
        raise DataError(f"{folder.url}: holds another set ({index.meta.source}, {index.images:,} images)")
    sizes = sum(index.shard(number).bytes for number in range(len(index)))
    return Packed(split, folder.url, len(index), index.images, sizes, written=False)


def _same(meta: Meta, source: Source) -> bool:
    return meta == source.meta if source.meta else (meta.source, meta.class_names) == (source.name, source.class_names)


def _images_of_shard(source: Source, split: str, options: PackOptions) -> int:
    images = source.count(split)
    if options.shard_bytes:
        probed = [_encoded(source.example(split, i), options) for i in range(min(_PROBED, images))]
        mean = sum(512 + len(data) + 1024 for data, _ in probed) / len(probed)  # headers, padding and the label
        return max(1, int(options.shard_bytes / mean))
    return options.shard_images or max(1, min(IMAGES_AT_MOST, -(-images // SHARDS_AT_LEAST)))


# ---- one shard


def write_shard(job: ShardJob) -> Shard:
    """Write a shard, the table of its members, and a note that it is whole."""
    folder = Storage(job.folder)
    with _workplace(folder) as place:
        write_tar(
            place / job.name,
            ((f"{i:08d}", job.source.example(job.split, i)) for i in range(job.start, job.stop)),
            job.options,
        )
        shard = index_shard(Storage(str(place)), job.name, folder.folder("index"))
        local = folder.local_path(job.name)
        if local is None:
            folder.write(job.name, place / job.name)
        else:
            os.replace(place / job.name, local)
    entry = folder.stat(job.name)
    shard = shard._replace(etag=entry.etag if entry else "")
    folder.write(_row_file(job.name), json.dumps([_plan(job), shard]).encode())
    return shard


def _kept(folder: Storage, jobs: list[ShardJob]) -> Iterator[Shard]:
    """The shards of an interrupted packing that are whole."""
    for job in jobs:
        try:
            plan, row = json.loads(folder.read(_row_file(job.name)))
            shard, entry = Shard(*row), folder.stat(job.name)
        except (MissingError, ValueError, TypeError):  # the row of another version
            continue
        if plan == _plan(job) and entry is not None and (entry.size, entry.etag) == (shard.bytes, shard.etag):
            yield shard


def _plan(job: ShardJob) -> str:
    """What a shard should hold, to tell one that was packed in another way."""
    return f"{job.source.name} {job.split} {job.start} {job.stop} {tuple(job.options)}"


def _row_file(name: str) -> str:
    return f"index/packing/{name}.json"


@contextlib.contextmanager
def _workplace(folder: Storage) -> Iterator[Path]:
    """A folder for a shard in the making: beside its place on a local disk, so that it can be moved there."""
    local = folder.local_path()
    if local is not None:
        local.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".packing-", dir=local) as place:
        yield Path(place)


def write_tar(
    path: Path,
    examples: Iterable[tuple[str, Example]],
    options: PackOptions = PackOptions(),  # noqa: B008  (immutable)
) -> None:
    """Write keyed examples as a tar by webdataset's own writer."""
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
    """The bytes of an image as they are written, and their extension."""
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
    """An image, uint8 [H, W, C] with one channel or three, as PNG: levels are pixel values as they are."""
    return encode(image, "png")


def encode(image: Pixels, extension: str, quality: int = 90) -> bytes:
    """An image, uint8 [H, W, C] with one channel or three, as PNG (its levels as they are), JPEG or WebP."""
    formats = {"png": "PNG", "jpg": "JPEG", "jpeg": "JPEG", "webp": "WEBP"}
    if extension not in formats:
        raise DataError(f"images cannot be written as {extension!r}; known are {', '.join(formats)}")
    stream = io.BytesIO()
    picture = Image.fromarray(np.ascontiguousarray(image[:, :, 0] if image.shape[2] == 1 else image))
    picture.save(stream, formats[extension], **({} if extension == "png" else {"quality": quality}))
    return stream.getvalue()
