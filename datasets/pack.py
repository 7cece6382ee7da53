"""From a source to shards and their index: <out>/train/ and <out>/validation/, each a data set of its own."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from cluster.storage import MissingError, Storage
from datasets.decode import LABEL, Pixels
from datasets.errors import DataError
from datasets.index import Index, Shard, write_index
from datasets.indexing import index_shard
from datasets.sources.source import SPLITS, Example, Source

SHARDS_AT_LEAST = 8  # so that a small set, too, is shuffled over shards
IMAGES_AT_MOST = 10_000


class Packed(NamedTuple):
    """What was written, or found already there, for a split."""

    split: str
    url: str
    shards: int
    images: int
    bytes: int
    written: bool  # False: it was there


def pack(
    source: Source, out: str, shard_images: int | None = None, progress: Callable[[int], object] = lambda images: None
) -> list[Packed]:
    """Write the splits of a source as WebDataset shards (png, cls) of `shard_images` each, with their indexes.

    The bytes of the tars depend on nothing but the images. `progress` is told of images written. A split that is
    finished, which its index says, is left alone. Raises `DataError` if it is another set's.
    """
    return [_pack_split(source, split, Storage(out).folder(split), shard_images, progress) for split in SPLITS]


def _pack_split(
    source: Source, split: str, folder: Storage, shard_images: int | None, progress: Callable[[int], object]
) -> Packed:
    there = _finished(folder, source, split)
    if there:
        progress(there.images)
        return there
    images = source.count(split)
    size = shard_images or max(1, min(IMAGES_AT_MOST, -(-images // SHARDS_AT_LEAST)))
    examples = enumerate(source.examples(split))
    shards: list[Shard] = []
    while chunk := list(islice(examples, size)):
        shards.append(_write_shard(folder, f"{len(shards):06d}.tar", chunk))
        progress(len(chunk))
    write_index(folder.folder("index"), source.meta, shards)
    return Packed(split, folder.url, len(shards), images, sum(shard.bytes for shard in shards), written=True)


def _finished(folder: Storage, source: Source, split: str) -> Packed | None:
    try:
        if not folder.exists("index/index.json"):
            return None
    except MissingError:
        return None
    index = Index.open(folder.url)
    if index.meta != source.meta or index.images != source.count(split):
        raise DataError(f"{folder.url}: holds another set ({index.meta.source}, {index.images:,} images)")
    sizes = sum(index.shard(number).bytes for number in range(len(index)))
    return Packed(split, folder.url, len(index), index.images, sizes, written=False)


def _write_shard(folder: Storage, name: str, examples: list[tuple[int, Example]]) -> Shard:
    with _workplace(folder) as place:
        write_tar(place / name, ((f"{number:08d}", example) for number, example in examples))
        shard = index_shard(Storage(str(place)), name, folder.folder("index"))
        local = folder.local_path(name)
        if local is None:
            folder.write(name, place / name)
        else:
            os.replace(place / name, local)
    entry = folder.stat(name)
    return shard._replace(etag=entry.etag if entry else "")


@contextlib.contextmanager
def _workplace(folder: Storage) -> Iterator[Path]:
    """A folder for a shard in the making: beside its place on a local disk, so that it can be moved there."""
    local = folder.local_path()
    if local is not None:
        local.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".packing-", dir=local) as place:
        yield Path(place)


def write_tar(path: Path, examples: Iterator[tuple[str, Example]]) -> None:
    """Write keyed examples as a tar by webdataset's own writer."""
    from webdataset import TarWriter

    with path.open("wb") as stream, TarWriter(stream, user="", group="", mtime=0, encoder=False) as tar:
        for key, example in examples:
            members: dict[str, str | bytes] = {"__key__": key, "png": encode_png(example.image)}
            if example.label is not None:
                members[LABEL] = str(example.label).encode()
            tar.write(members)


def encode_png(image: Pixels) -> bytes:
    """An image, uint8 [H, W, C] with one channel or three, as PNG: levels are pixel values as they are."""
    stream = io.BytesIO()
    Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(stream, "PNG")
    return stream.getvalue()
