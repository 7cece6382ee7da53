"""What is in a set, by its columns: counts, sizes, captions, labels, duplicates, quarantined samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from datasets.shards.bad_samples import reasons
from datasets.shards.columns import numbers
from datasets.shards.index import Index
from datasets.shards.index_files import read_quarantine
from datasets.shards.sample_columns import LABEL_NAME, SCHEMA
from datasets.shards.scan import HASH

_BAR = 30  # characters of the longest bar
_TOP = 8  # values that are listed
_MOST_COMPARED = 1 << 27  # images among which duplicates are counted: a GiB
_DISTINCT = 1 << 20  # values of a column that are counted


@dataclass
class Description:
    """Figures of a set, gathered shard by shard."""

    images: int = 0
    values: dict[str, Counter[Any]] = field(default_factory=dict)  # how often values occur, by column
    scales: dict[str, Counter[int]] = field(default_factory=dict)  # images by floor(log2(value)), -1 for 0, by column
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)  # of numbers in requested columns
    missing: Counter[str] = field(default_factory=Counter)  # nulls, by column
    prints: list[NDArray[np.uint64]] = field(default_factory=list)  # of the bytes of images
    hashes: list[NDArray[np.uint64]] = field(default_factory=list)  # perceptual

    def add(self, table: pa.Table) -> None:
        """Add the column table of a shard."""
        self.images += table.num_rows
        for name in table.column_names:
            if nulls := table.column(name).null_count:
                self.missing[name] += nulls
        for name in ("format", "grey", "orientation", "label", LABEL_NAME):
            if name in table.column_names:
                self._count(name, table.column(name))
        sizes = table.select(["width", "height"]).group_by(["width", "height"]).aggregate([([], "count_all")])
        rows = zip(*(sizes.column(name).to_pylist() for name in ("width", "height", "count_all")), strict=True)
        self._take("size", {f"{width} x {height}": count for width, height, count in rows})
        for name in ("width", "height", "bytes", "caption_length"):
            self._scale(name, table.column(name).drop_null())
        for name in table.column_names:
            if name not in SCHEMA.names and name not in (LABEL_NAME, HASH):
                self._requested(name, table.column(name).drop_null())
        crc, size = (numbers(table.column(name)).astype(np.uint64) for name in ("crc32", "bytes"))
        if self.images <= _MOST_COMPARED:
            self.prints.append((crc << np.uint64(32)) ^ size)
            if HASH in table.column_names:
                self.hashes.append(numbers(table.column(HASH).drop_null()))

    def _count(self, name: str, column: pa.ChunkedArray) -> None:
        counts = pc.value_counts(column.drop_null())
        self._take(name, dict(zip(counts.field(0).to_pylist(), counts.field(1).to_pylist(), strict=True)))

    def _take(self, name: str, counts: dict[Any, int]) -> None:
        counter = self.values.setdefault(name, Counter())
        if len(counter) < _DISTINCT:
            counter.update(counts)

    def _scale(self, name: str, column: pa.ChunkedArray) -> None:
        values = numbers(column)
        exponents = np.where(values > 0, np.floor(np.log2(np.maximum(values, 1))), -1).astype(np.int64)
        found, counts = np.unique(exponents, return_counts=True)
        self.scales.setdefault(name, Counter()).update(dict(zip(found.tolist(), counts.tolist(), strict=True)))

    def _requested(self, name: str, column: pa.ChunkedArray) -> None:
        kind = column.type
        if pa.types.is_integer(kind) or pa.types.is_floating(kind):
            if len(column):
                low, high = (float(value.as_py()) for value in pc.min_max(column).values())
                before = self.ranges.get(name, (low, high))
                self.ranges[name] = min(low, before[0]), max(high, before[1])
        elif not pa.types.is_null(kind):
            self._count(name, column)


def describe_set(index: Index, progress: Callable[[int], object] = lambda images: None) -> Iterator[str]:
    """Lines for a person about a set."""
    found = Description()
    for number in range(len(index)):
        table = index.columns(number)
        found.add(table)
        progress(table.num_rows)
    yield from _counts(index, found)
    for name in ("format", "grey", "orientation"):
        yield f"{name}: {_listed(found.values.get(name, Counter()))}"
    sizes = found.values["size"]
    yield f"width x height: {len(sizes):,} different: {_listed(sizes)}"
    yield from _labels(index, found)
    captions = found.images - found.missing["caption_length"]
    yield f"captions: {captions:,} of {found.images:,} images"
    if found.images <= _MOST_COMPARED:
        yield f"duplicates: {_repeated(found.prints):,} images have the bytes of an earlier one"
        if found.hashes:
            yield f"look-alikes: {_repeated(found.hashes):,} images have the perceptual hash of an earlier one"
    yield from _requested_columns(found)
    for name, unit in (("width", "pixels"), ("height", "pixels"), ("bytes", "bytes"), ("caption_length", "characters")):
        yield from histogram(f"{name} ({unit})", found.scales.get(name, Counter()))


def _counts(index: Index, found: Description) -> Iterator[str]:
    shards = [index.shard(number) for number in range(len(index))]
    size = sum(shard.read_bytes for shard in shards) / 1e9
    seen = found.images + index.quarantined
    account = f"{seen:,} samples seen = {found.images:,} indexed + {index.quarantined:,} quarantined"
    yield f"{index.url}: {found.images:,} images in {len(shards):,} shards, {size:.3g} GB"
    for folder in index.folders:
        if folder.meta.selection:
            yield f"a selection {folder.meta.selection}"
            continue
        quarantine = read_quarantine(folder.index_url)
        yield f"{account}, and {sum(shard.skipped for shard in shards):,} files that belong to no sample"
        for count, example in reasons(quarantine):
            yield f"  quarantined: {count:,} like {example}"


def _labels(index: Index, found: Description) -> Iterator[str]:
    counts = found.values.get(LABEL_NAME) or found.values.get("label") or Counter()
    if not counts:
        yield "labels: none"
        return
    if found.values.get("label") and (names := index.meta.class_names):
        counts = Counter({names[int(label)] if label < len(names) else label: n for label, n in counts.items()})
    rarest, fewest = min(counts.items(), key=lambda item: item[1])
    text = f"labels: {index.classes:,} classes, {len(counts):,} of them with images"
    yield f"{text}; fewest {fewest:,} ({rarest}): {_listed(counts)}"


def _requested_columns(found: Description) -> Iterator[str]:
    shown = {HASH, "format", "grey", "orientation", "label", LABEL_NAME, "size"}
    names = [*found.ranges, *(name for name in found.values if name not in shown)]
    for name in sorted({*names, *(name for name in found.missing if name not in SCHEMA.names and name not in shown)}):
        there = found.images - found.missing[name]
        if name in found.ranges:
            text = f"{found.ranges[name][0]:g} to {found.ranges[name][1]:g}"
        else:
            text = _listed(found.values.get(name, Counter()))
        yield f"{name}: {there:,} of {found.images:,} images: {text}"


def _repeated(parts: list[NDArray[np.uint64]]) -> int:
    """Values that occur before."""
    values = np.concatenate([*parts, np.empty(0, np.uint64)])
    return len(values) - len(np.unique(values))


def histogram(title: str, scales: Counter[int]) -> Iterator[str]:
    """Bars by powers of two, from counts by exponent."""
    if not scales:
        return
    yield title
    longest = max(scales.values())
    for exponent in range(min(scales), max(scales) + 1):
        low, high = (0, 0) if exponent < 0 else (1 << exponent, (2 << exponent) - 1)
        label = f"{low:,}" if low == high else f"{low:,} to {high:,}"
        count = scales[exponent]
        bar = "#" * max(round(_BAR * count / longest), count > 0)
        yield f"{label:>24}  {bar:<{_BAR}}  {count:,}".rstrip()


def _listed(counts: Counter[Any]) -> str:
    shown = [f"{_text(value)} {count:,}" for value, count in counts.most_common(_TOP)]
    return ", ".join(shown) + (f", and {len(counts) - _TOP:,} more" if len(counts) > _TOP else "")


def _text(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)[:60]
