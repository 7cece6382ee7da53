"""Small sets of real shards for tests. Every image contains its number."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from datasets.order.order import ImageOrder, Integers, Located
from datasets.packing.encoding import encode
from datasets.packing.sources.source import Example
from datasets.packing.write import write_tar
from datasets.shards.index import Index
from datasets.shards.indexing import index_shards

HEIGHT, WIDTH = 4, 6


def image_of(number: int, channels: int = 1) -> np.ndarray:
    """The image of sample `number`: its first four pixel values are the number, the others noise."""
    image = np.random.default_rng(number).integers(0, 256, (HEIGHT, WIDTH, channels), dtype=np.uint8)
    image.reshape(-1)[:4] = np.frombuffer(np.uint32(number).tobytes(), dtype=np.uint8)
    return image


def number_of(image: np.ndarray) -> int:
    """The number in an image with one channel, [4, 6] in any layout."""
    return int(np.ascontiguousarray(image).reshape(-1)[:4].view(np.uint32)[0])


def write_set(folder: Path, counts: Sequence[int], channels: int = 1, labels: bool = True) -> Index:
    """Write shards with `counts` images, numbered consecutively, with label number % 10, and their index."""
    folder.mkdir(parents=True, exist_ok=True)
    number = 0
    for shard, count in enumerate(counts):
        examples = []
        for _ in range(count):
            examples.append((f"{number:06d}", Example(image_of(number, channels), number % 10 if labels else None)))
            number += 1
        write_tar(folder / f"{shard:04d}.tar", iter(examples))
    index_shards(str(folder), str(folder / "index"))
    return Index.open(str(folder))


def locate(order: ImageOrder, positions: Integers) -> Located:
    """The samples at positions of an order."""
    return order.locate(order.places(np.asarray(positions)))


def write_members(path: Path, members: Sequence[tuple[str, bytes]], format: int = tarfile.USTAR_FORMAT) -> None:
    """Write a tar with exactly these files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def png(number: int = 0, channels: int = 1) -> bytes:
    """The PNG of image `number`."""
    return encode(image_of(number, channels), "png")
