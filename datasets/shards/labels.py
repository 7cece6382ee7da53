"""Labels of samples: a number or a class name, in the .cls member or in a field of the .json member."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from datasets.errors import DataError
from datasets.images.decode import LABEL, LABEL_BYTES, MAX_CLASSES, decode_label
from datasets.shards.json_fields import field_of, parse_fields, split_source

MOST_NAME_BYTES = 256  # of a class name


class LabelSource(NamedTuple):
    """Where the labels of a set are."""

    place: str = ""  # json.FIELD; "": the .cls member
    named: bool = False  # class names instead of numbers

    @property
    def member(self) -> str:
        """Extension of the member that has the label."""
        return split_source(self.place)[0] if self.place else LABEL

    @property
    def shown(self) -> str:
        """The place for a person: .cls or json.FIELD."""
        return self.place or f".{LABEL}"

    def read(self, data: bytes | memoryview) -> int | str | None:
        """The label in the bytes of the member; None: its .json has no such field. Raises `DataError`."""
        if self.place:
            return self._of_field(data)
        if not self.named:
            return decode_label(data)
        try:
            return _checked_name(str(data[: MOST_NAME_BYTES + 1], "utf-8"))
        except UnicodeDecodeError as error:
            raise DataError("label: not UTF-8, or too long for a class name") from error

    def _of_field(self, data: bytes | memoryview) -> int | str | None:
        try:
            value = field_of(parse_fields(data), split_source(self.place)[1])
        except ValueError as error:
            raise DataError(f"label: the .json cannot be read ({' '.join(str(error).split())[:100]})") from error
        if value is None:
            return None
        if self.named:
            return _checked_name(value if isinstance(value, str) else _digits(value))
        return decode_label(_digits(value).encode(errors="replace"))


CLS = LabelSource()


def number_of(label: int | str, classes: int, numbers: Mapping[str, int]) -> int:
    """The class of a label, below `classes`. `numbers`: those of class names. Raises `DataError`."""
    if isinstance(label, str):
        if label not in numbers:
            raise DataError(f"label {label!r} is none of the {classes} class names of the index")
        return numbers[label]
    if label >= classes:
        raise DataError(f"label {label} is outside the {classes} classes 0..{classes - 1}")
    return label


def names_of_classes(before: tuple[str, ...], found: set[str]) -> tuple[str, ...]:
    """The names of classes 0, 1, ...: those that have a number already, then new ones sorted. Raises `DataError`."""
    names = (*before, *sorted(found.difference(before)))
    if len(names) > MAX_CLASSES:
        raise DataError(f"{len(names):,} class names; the limit is {MAX_CLASSES:,}: are these captions?")
    return names


def _digits(value: Any) -> str:
    if type(value) is int:
        return str(value) if -MAX_CLASSES <= value <= 10**LABEL_BYTES else "a huge number"
    if isinstance(value, str):
        return value
    raise DataError(f"label: a {type(value).__name__} in the .json, expected a number or text")


def _checked_name(text: str) -> str:
    name = " ".join(text.split())
    if not name or len(name.encode(errors="replace")) > MOST_NAME_BYTES:
        raise DataError(f"label {name[:40]!r} is not a class name of 1 to {MOST_NAME_BYTES} bytes")
    return name.encode(errors="backslashreplace").decode()
