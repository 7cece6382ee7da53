"""scikit-learn's 1,797 scans of digits, 8 x 8 pixels with 17 grey levels (Alpaydin and Kaynak 1998)."""

from __future__ import annotations

from functools import cached_property

import numpy as np

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
        return _IMAGES - _HELD_OUT if split == "train" else _HELD_OUT

    def example(self, split: str, i: int) -> Example:
        images, labels = self._arrays
        row = self._order[i if split == "train" else _IMAGES - _HELD_OUT + i]
        return Example(images[row], int(labels[row]))

    @cached_property
    def _order(self) -> np.ndarray:
        return shuffled(_IMAGES, "digits")

    @cached_property
    def _arrays(self) -> tuple[np.ndarray, np.ndarray]:
        from sklearn.datasets import load_digits

        scans = load_digits()
        return scans.images.astype(np.uint8)[:, :, :, None], scans.target
