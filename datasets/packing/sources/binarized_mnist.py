"""MNIST as binarised once by Larochelle and Murray (2011): the set on which bounds of binary images are compared."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets.errors import DataError
from datasets.packing.sources.source import Example, InMemory, exists, fetch, shuffled
from datasets.shards.index_files import Meta

_FILES = {"train": "train_packed.npy", "validation": "valid_packed.npy", "test": "test_packed.npy"}
_SIDE = 28


class BinarizedMnist(InMemory):
    """The fixed stochastic binarisation: 50,000 training, 10,000 validation and 10,000 test images; no labels.

    Files: `np.packbits` of the 784 pixels, uint8 [images, 98], as .npy or .npy.gz. Without valid_packed.npy there is no
    validation split.
    """

    meta = Meta(
        channels=1,
        height=_SIDE,
        width=_SIDE,
        levels=2,
        binarised="stochastic",
        source="binarized MNIST (Larochelle and Murray 2011), fixed draw",
    )

    def __init__(self, folder: str):
        self._packed = {
            split: _load(fetch(folder, name), name)
            for split, name in _FILES.items()
            if split != "validation" or exists(folder, name)
        }
        self._orders = {split: shuffled(self.count(split), f"binarized/{split}") for split in self._packed}

    def count(self, split: str) -> int:
        return len(self._packed.get(split, ()))

    def example(self, split: str, i: int) -> Example:
        packed = self._packed[split][self._orders[split][i]]
        return Example(np.unpackbits(packed).reshape(_SIDE, _SIDE, 1), None)


def _load(data: bytes, name: str) -> NDArray[Any]:
    try:
        packed: NDArray[Any] = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DataError(f"{name}: not an .npy file ({error})") from error
    if packed.dtype != np.uint8 or packed.shape[1:] != (_SIDE * _SIDE // 8,):
        raise DataError(f"{name}: {packed.dtype} {packed.shape}, expected packed bits, uint8 [images, 98]")
    return packed
