"""What the loop needs to know of data: batches of tensors, padded with images of weight zero."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

Row = dict[str, Any]
"""Figures by name; "images" is the image count that they belong to."""


class Batch(Protocol):
    """One rank's share of a global batch in training, or some images of its part of a set in evaluation."""

    @property
    def images(self) -> Tensor:
        """uint8 [n, C, H, W] levels"""

    @property
    def labels(self) -> Tensor:
        """int64 [n]"""

    @property
    def positions(self) -> Tensor:
        """int64 [n] in the global order (training) or in the set (evaluation); 0 for padding"""

    @property
    def weights(self) -> Tensor:
        """float32 [n]: 1; 0 for padding and for quarantined images"""
