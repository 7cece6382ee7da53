"""scikit-learn's 1,797 scans of digits, 8 x 8 pixels with 17 grey levels (Alpaydin and Kaynak 1998)."""

from __future__ import annotations

import gzip
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datasets.errors import DataError
from datasets.images.decode import Pixels
from datasets.packing.sources.source import Example, InMemory, shuffled
from datasets.shards.index_files import Meta

_IMAGES = 1797
_HELD_OUT = 270  # images: 15%


class Digits(InMemory):
    """Real scans, small enough to be installed with scikit-learn. A fixed random 15% is held out."""

    meta = Meta(
        channels=1,
        height=8,
        width=8,
        levels=17,
        classes=10,
        class_names=tuple("0123456789"),
        source="handwritten digits 8x8 (UCI, carried by scikit-learn)",
    )

    def count(self, split: str) -> int:
        return {"train": _IMAGES - _HELD_OUT, "validation": _HELD_OUT}.get(split, 0)

    def example(self, split: str, i: int) -> Example:
        images, labels = self._arrays
        row = self._order[i if split == "train" else _IMAGES - _HELD_OUT + i]
        return Example(images[row], int(labels[row]))

    @cached_property
    def _order(self) -> NDArray[np.int64]:
        return shuffled(_IMAGES, "digits")

    @cached_property
    def _arrays(self) -> tuple[Pixels, Pixels]:
        """Images [1797, 8, 8, 1] and labels [1797], read from scikit-learn's file: importing it takes seconds."""
        spec = find_spec("sklearn")
        folders = spec.submodule_search_locations if spec else None
        if not folders:
            raise DataError("the digits are a file of scikit-learn, which is not installed")
        with gzip.open(Path(folders[0]) / "datasets/data/digits.csv.gz") as file:
            table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
        return table[:, :-1].reshape(-1, 8, 8, 1), table[:, -1]
