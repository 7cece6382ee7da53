"""Encoders for tests. Each image contains its number: see `small_sets.number_of`."""

from __future__ import annotations

import numpy as np

from datasets.encoding.encoder import Samples
from tests.datasets.small_sets import number_of


def vector_of(number: int) -> np.ndarray:
    """float32 [3] of sample `number`."""
    return np.array([number, number / 2, -1], np.float32)


def sequence_of(number: int) -> np.ndarray:
    """float32 [number % 4, 2] of sample `number`: ragged, sometimes empty."""
    return np.arange(number % 4 * 2, dtype=np.float32).reshape(-1, 2) + number


class Numbers:
    """A vector, a sequence and a scalar of each image; every seventh has no vector."""

    def __init__(self, scale: str = "1"):
        self.scale = float(scale)

    def __call__(self, samples: Samples) -> dict[str, list]:
        numbers = [number_of(image) for image in samples.images]
        return {
            "clip": [None if number % 7 == 6 else vector_of(number) * self.scale for number in numbers],
            "words": [sequence_of(number) for number in numbers],
            "score": [number / 10 for number in numbers],
        }


class Lengths:
    """The number of characters of each caption, without images."""

    images = False
    members = ("txt",)

    def __call__(self, samples: Samples) -> dict[str, list]:
        return {"length": [None if text is None else len(text) for text in samples.members["txt"]]}


class Wrong:
    """Results that cannot be stored; `how` chooses."""

    def __init__(self, how: str):
        self.how = how

    def __call__(self, samples: Samples) -> dict[str, list]:
        count = len(samples.keys)
        return {
            "few": {"clip": [1.0] * (count - 1)},
            "name": {"Clip!": [1.0] * count},
            "mixed": {"clip": [1.0] + [np.zeros(2)] * (count - 1)},
            "nan": {"clip": [np.array([np.nan])] * count},
            "large": {"clip": [np.array([1e5])] * count},
            "text": {"clip": [np.array(["a"])] * count},
        }[self.how]


not_callable = 5
