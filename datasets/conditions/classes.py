"""The class of an image, from its .cls member."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from datasets.conditions.condition import Arrays, Field, Sample, SingleChoice
from datasets.errors import DataError
from datasets.images.decode import LABEL, LABEL_BYTES, decode_label

_KEPT = 1 << 16  # distinct texts whose class is remembered


@dataclass(frozen=True)
class ClassCondition(SingleChoice):
    """int64 [n] in 0..classes-1. A sample without a valid label must not be used."""

    name: str
    classes: int
    _known: dict[bytes, int] = field(default_factory=dict, compare=False, repr=False)
    members = (LABEL,)

    @property
    def layout(self) -> dict[str, Field]:
        return {self.name: Field(np.dtype(np.int64), ())}

    def read(self, sample: Sample, choice: int, arrays: Arrays, row: int) -> str:
        if (label := sample.member(LABEL)) is None:
            raise DataError(f"no .{LABEL} member, but the set has {self.classes} classes")
        text = bytes(label[:LABEL_BYTES])
        if (known := self._known.get(text)) is None:
            known = decode_label(text, self.classes)
            if len(self._known) < _KEPT:
                self._known[text] = known
        arrays[self.name][row] = known
        return ""
