"""Hold out a part of the training images of a source that has no validation split."""

from __future__ import annotations

from datasets.errors import DataError
from datasets.packing.sources.source import Example, InMemory


class HeldOut(InMemory):
    """A source whose validation split is a fixed random fraction of its training images."""

    def __init__(self, source: InMemory, fraction: float):
        if source.count("validation"):
            raise DataError(f"{source.name}: has a validation split; --held-out is for sets without one")
        self.meta, self.splits = source.meta, source.splits
        self._source = source
        self._trained = source.count("train") - round(source.count("train") * fraction)

    def count(self, split: str) -> int:
        """The number of images of a split."""
        train = self._source.count("train")
        return {"train": self._trained, "validation": train - self._trained}.get(split, self._source.count(split))

    def example(self, split: str, i: int) -> Example:
        """Image i of a split."""
        if split == "validation":  # the order of the training images is random
            return self._source.example("train", self._trained + i)
        return self._source.example(split, i)
