"""The class of an image, from its .cls member or a field of its .json member."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from datasets.conditions.condition import Arrays, Field, Sample, SingleChoice
from datasets.errors import DataError
from datasets.images.decode import LABEL_BYTES
from datasets.shards.labels import CLS, LabelSource, number_of

_KEPT = 1 << 16  # distinct texts whose class is remembered


@dataclass(frozen=True)
class ClassCondition(SingleChoice):
    """int64 [n] in 0..classes-1. A sample without a valid label must not be used."""

    name: str
    classes: int
    source: LabelSource = CLS
    class_names: tuple[str, ...] = ()
    _known: dict[bytes, int] = field(default_factory=dict, compare=False, repr=False)

    @property
    def members(self) -> tuple[str, ...]:
        return (self.source.member,)

    @property
    def layout(self) -> dict[str, Field]:
        return {self.name: Field(np.dtype(np.int64), ())}

    def read(self, sample: Sample, choice: int, arrays: Arrays, row: int) -> str:
        if (data := sample.member(self.source.member)) is None:
            raise DataError(f"no {self.source.shown}, but the set has {self.classes} classes")
        text = bytes(data) if len(data) <= LABEL_BYTES else b""
        if not text or (known := self._known.get(text)) is None:
            known = self._class_of(data)
            if text and len(self._known) < _KEPT:
                self._known[text] = known
        arrays[self.name][row] = known
        return ""

    def _class_of(self, data: memoryview) -> int:
        if (label := self.source.read(data)) is None:
            raise DataError(f"no {self.source.shown}, but the set has {self.classes} classes")
        return number_of(label, self.classes, self._numbers)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.class_names)}
