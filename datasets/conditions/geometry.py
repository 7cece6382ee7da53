"""Original size and crop of an image (Podell et al. 2023, SDXL, arXiv 2307.01952, section 2.2)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from datasets.conditions.condition import Arrays, Field, Sample, SingleChoice
from datasets.images.patches import PatchTransform
from datasets.images.transform import Transform
from datasets.order.order import Integers


@dataclass(frozen=True)
class GeometryCondition(SingleChoice):
    """float32 [n, 4]: height and width of the original image, top and left edge of the crop in it, pixels."""

    name: str
    transform: Transform | PatchTransform | None
    members = ()

    @property
    def layout(self) -> dict[str, Field]:
        return {self.name: Field(np.dtype(np.float32), (4,))}

    def read(self, sample: Sample, choice: int, arrays: Arrays, row: int) -> str:
        arrays[self.name][row] = (*sample.size, 0, 0)
        return ""

    def adjust(self, arrays: Arrays, rows: Integers, positions: Integers) -> None:
        if self.transform is None:
            return
        values = arrays[self.name]
        for row, position in zip(rows.tolist(), positions.tolist(), strict=True):
            height, width = values[row, :2].tolist()
            left, top, *_ = self.transform.crop(int(height), int(width), position)
            values[row, 2:] = top, left
