"""Shards of random images."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from datasets.shards.indexing import IndexOptions, index_shards


def write_images(folder: Path, shape: tuple[int, ...] = (8, 8), classes: int = 0, levels: int = 256) -> Path:
    """A shard of 40 random images with labels 0, 1, ... `classes` - 1 in turn, and its index."""
    folder.mkdir(parents=True)
    drawn = np.random.default_rng(0)
    with tarfile.open(folder / "0.tar", "w") as tar:
        for number in range(40):
            stream = io.BytesIO()
            Image.fromarray(drawn.integers(0, min(levels, 17), shape, dtype=np.uint8)).save(stream, "png")
            members = {"png": stream.getvalue()} | ({"cls": b"%d" % (number % classes)} if classes else {})
            for extension, data in members.items():
                info = tarfile.TarInfo(f"{number:03d}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    index_shards(str(folder), str(folder / "index"), IndexOptions(levels=levels))
    return folder
