"""Make a selection: an index of some samples of a set, or several by a split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from cluster.storage.storage import Storage, join
from datasets.errors import DataError
from datasets.selection.query import Found, Integers, Wanted, find
from datasets.selection.samples import SampleColumns
from datasets.selection.write import Rows, Selected, begin, meta_of, write_rows
from datasets.shards.index import Index
from datasets.shards.index_files import QUARANTINE_SCHEMA, read_schema, write_index

Split = tuple[str, float]  # name, share of the samples
Call = Callable[[Sequence[Rows]], list[Selected]]
Each = Callable[[Call, list[list[Rows]]], Iterable[list[Selected]]]

_SHARDS_AT_ONCE = 64  # of a call


class Made(NamedTuple):
    """An index that was written."""

    url: str
    images: int
    shards: int
    excess: float  # bytes that reading fetches over bytes of the selected samples


class Selection(NamedTuple):
    """What was selected of a set."""

    images: int  # of the set
    found: Found
    made: list[Made]
    missing: Counter[str]  # samples without a row, by URL of derived columns


def select(
    index: Index,
    out: str,
    wanted: Wanted,
    splits: Sequence[Split] = (),
    derived: Sequence[str] = (),
    each: Each = map,
) -> Selection:
    """Write the index of the samples that are `wanted` to `out`, or one for each split to out/NAME.

    `derived`: URLs of column tables. `each` maps a call over parts of the shards, perhaps in other processes. Raises
    `DataError` if nothing is selected, or if `out` holds something else.
    """
    check_splits(splits)
    columns = SampleColumns(index, derived)
    urls = [join(out, name) for name, _ in splits] or [out]
    if columns.folder.index_url in urls:
        raise DataError(f"{out}: is the index that is selected from; give another --out")
    found = find(columns, wanted)
    places = dict(zip(urls, _split(found, [share for _, share in splits]), strict=True))
    if empty := next((url for url, some in places.items() if not len(some)), ""):
        of = f"of {index.images:,} images {found.matching:,} match"
        raise DataError(f"{empty}: nothing is selected ({of}, {len(found.places):,} are left)")
    written = {}
    for url, some in places.items():
        begin(url)
        call = partial(write_rows, columns.folder.index_url, url)
        written[url] = _in_order(each(call, _parts(index, some)))
    shards = [selected.shard for parts in written.values() for selected in parts]
    made = []
    for number, (url, parts) in enumerate(written.items()):
        text = _describe(index, wanted, splits[number] if splits else None, derived)
        meta = meta_of(index.meta, shards, text)
        rows = [selected.shard for selected in parts]
        none = QUARANTINE_SCHEMA.empty_table()
        write_index(Storage(url), meta, rows, none, read_schema(columns.folder.index_url))
        excess = sum(shard.read_bytes for shard in rows) / max(sum(selected.needed for selected in parts), 1)
        made.append(Made(url, sum(shard.images for shard in rows), len(rows), excess))
    return Selection(index.images, found, made, columns.missing)


def check_splits(splits: Sequence[Split]) -> None:
    """Raise `DataError` unless the shares are positive and at most 1 together, and the names are names."""
    total = sum(share for _, share in splits)
    if any(not share > 0 for _, share in splits) or total > 1 + 1e-9:
        raise DataError(f"shares of a split are positive and at most 1 together, not {total:g}")
    names = [name for name, _ in splits]
    if len(set(names)) < len(names) or any(not name or "/" in name or name.startswith(".") for name in names):
        raise DataError(f"the names of a split are different folders, not {', '.join(map(repr, names))}")


def _split(found: Found, shares: Sequence[float]) -> list[Integers]:
    """The samples of each split: those whose fraction is in its part of [0, 1)."""
    if not shares:
        return [found.places]
    edges = np.cumsum([0.0, *shares])
    if abs(edges[-1] - 1) < 1e-9:
        edges[-1] = 1.0
    parts = np.searchsorted(edges, found.fractions, side="right") - 1
    return [found.places[parts == number] for number in range(len(shares))]


def _parts(index: Index, places: Integers) -> list[list[Rows]]:
    """Samples by shard, some shards at a time."""
    starts = np.concatenate([[0], np.cumsum(index.counts)])
    edges = np.searchsorted(places, starts)
    full = np.flatnonzero(np.diff(edges)).tolist()
    rows = (Rows(index.shard(n), places[edges[n] : edges[n + 1]] - starts[n]) for n in full)
    listed = list(rows)
    return [listed[first : first + _SHARDS_AT_ONCE] for first in range(0, len(listed), _SHARDS_AT_ONCE)]


def _in_order(parts: Iterable[list[Selected]]) -> list[Selected]:
    return sorted((selected for part in parts for selected in part), key=lambda selected: selected.shard.name)


def _describe(index: Index, wanted: Wanted, split: Split | None, derived: Sequence[str]) -> str:
    """How a selection was made, for a person."""
    text = f"of {index.folders[0].index_url}"
    if asked := str(wanted):
        text += f": {asked}"
    if split:
        text += f"; split {split[0]}:{split[1]:g}"
    if derived:
        text += f"; columns of {', '.join(derived)}"
    return text
