"""MNIST and Fashion-MNIST from their idx files (LeCun, Cortes and Burges), plain or gzipped, at a path or URL."""

from __future__ import annotations

import struct
from typing import Literal

import numpy as np

from datasets.errors import DataError
from datasets.packing.sources.source import Example, InMemory, fetch, shuffled
from datasets.shards.index_files import Meta

_FILES = {"train": "train", "test": "t10k"}  # by split
_UNSIGNED_BYTE = 0x08

# MD5 of the decompressed files
KNOWN = {
    "mnist": {
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    },
    "fashion-mnist": {
        "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
        "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
        "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
    },
}


class Idx(InMemory):
    """Grey images and labels: train and test; there is no validation split.

    With `binarise="static"`, pixel values from 128 on become 1, others 0.
    `expect`: a set in `KNOWN` whose checksums the files must have.
    """

    def __init__(self, folder: str, binarise: Literal["", "static"] = "", expect: str | None = None):
        self._binarise = binarise
        checksums = KNOWN[expect] if expect else {}
        self._images: dict[str, np.ndarray] = {}
        self._labels: dict[str, np.ndarray] = {}
        for split, prefix in _FILES.items():
            names = [f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"]
            images, labels = (parse_idx(fetch(folder, name, checksums.get(name, "")), name) for name in names)
            if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
                raise DataError(f"{folder}: {names[0]} is {images.shape} and {names[1]} {labels.shape}")
            self._images[split], self._labels[split] = images, labels
        _, height, width = self._images["train"].shape
        classes = 1 + int(max(labels.max() for labels in self._labels.values()))
        levels = 2 if binarise else 256
        self.meta = Meta(
            1, height, width, levels, classes, tuple(map(str, range(classes))), binarise, expect or "idx files"
        )
        self._orders = {split: shuffled(self.count(split), f"idx/{split}") for split in _FILES}

    def count(self, split: str) -> int:
        return len(self._images.get(split, ()))

    def example(self, split: str, i: int) -> Example:
        row = self._orders[split][i]
        image = self._images[split][row][:, :, None]
        label = int(self._labels[split][row])
        return Example((image >= 128).astype(np.uint8) if self._binarise else image, label)


def parse_idx(data: bytes, name: str) -> np.ndarray:
    """The array of an idx file of unsigned bytes. Raises `DataError`."""
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] != _UNSIGNED_BYTE:
        raise DataError(f"{name}: not an idx file of unsigned bytes")
    axes = data[3]
    if len(data) < 4 + 4 * axes:
        raise DataError(f"{name}: truncated")
    shape = struct.unpack(f">{axes}I", data[4 : 4 + 4 * axes])
    values = np.frombuffer(data, dtype=np.uint8, offset=4 + 4 * axes)
    if values.size != np.prod(shape, dtype=object):
        raise DataError(f"{name}: {values.size} values, but its header has {' x '.join(map(str, shape))}")
    return values.reshape(shape)
