"""Write the index of a selection: rows of the member and column tables of an index, for the same shards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cluster.storage.errors import MissingError
from cluster.storage.storage import Storage
from datasets.errors import DataError
from datasets.reading.shard_reader import member_columns, parts_to_read
from datasets.shards.column_tables import read_columns, write_columns
from datasets.shards.index_files import Meta, Shard, encode_table, member_file, read_meta, read_table
from datasets.shards.member_tables import checksum
from datasets.shards.table_checks import check_members

_WINDOW = 256  # samples that are read at once, as `data.window` is by default
_BLOCK = 512  # bytes; a tar has a header of one, and pads members to whole ones


class Rows(NamedTuple):
    """Samples of a shard that were selected."""

    shard: Shard  # its row of the index
    rows: NDArray[np.int64]  # of its tables, ascending


class Selected(NamedTuple):
    """A shard of a selection."""

    shard: Shard
    needed: int  # bytes of its selected samples in the tar


def write_rows(index_url: str, out: str, parts: Sequence[Rows]) -> list[Selected]:
    """Write the tables of some shards of a selection. Raises `DataError` if those of the index are damaged."""
    source, to = Storage(index_url), Storage(out)
    return [_write(source, to, part) for part in parts]


def _write(source: Storage, to: Storage, part: Rows) -> Selected:
    shard, rows = part.shard, pa.array(part.rows)
    try:
        members = read_table(source, f"members/{member_file(shard.name)}")
        check_members(members, shard.bytes)
        columns = read_columns(source, shard.name)
        if not members.num_rows == columns.num_rows == shard.images:
            raise ValueError("other numbers of rows")
    except (MissingError, ValueError) as error:
        raise DataError(f"{source.url}: tables of {shard.name}: {error}; run python -m jobs.index again") from error
    members, columns = members.take(rows).combine_chunks(), columns.take(rows).combine_chunks()
    to.write(f"members/{member_file(shard.name)}", encode_table(members))
    write_columns(to, shard.name, columns)
    read, needed = _bytes(members)
    sizes = {(height, width) for height, width in _distinct(columns, ["height", "width"])}
    height, width = sizes.pop() if len(sizes) == 1 else (0, 0)
    grey = columns.column("grey")
    keys = [columns.column("key").filter(mask)[:1].to_pylist() for mask in (grey, pc.invert(grey))]
    count = int(pc.sum(grey).as_py() or 0)
    return Selected(
        shard._replace(
            images=len(part.rows),
            crc32=checksum(members),
            channels=shard.channels if count < len(part.rows) else 1,
            height=height,
            width=width,
            grey=count,
            grey_key=next(iter(keys[0]), ""),
            colour_key=next(iter(keys[1]), ""),
            quarantined=0,
            skipped=0,
            read_bytes=read,
        ),
        needed,
    )


def _distinct(table: pa.Table, names: list[str]) -> list[tuple[int, ...]]:
    rows = table.select(names).group_by(names).aggregate([]).to_pydict()
    return list(zip(*(rows[name] for name in names), strict=True))


def _bytes(members: pa.Table) -> tuple[int, int]:
    """(bytes that reading all samples fetches, window by window; bytes of their members in the tar)."""
    columns = member_columns(members)
    read = needed = 0
    for start in range(0, members.num_rows, _WINDOW):
        window = [column.rows(slice(start, start + _WINDOW)) for column in columns.values()]
        window = [column for column in window if (column.size >= 0).any()]
        read += sum(stop - begin for begin, stop in parts_to_read(window))
        for column in window:
            sizes = column.size[column.size >= 0]
            needed += int((_BLOCK + -(-sizes // _BLOCK) * _BLOCK).sum())
    return read, needed


def begin(out: str) -> None:
    """Make room for a selection at `out`: what is there stops being an index. Raises `DataError` if it is another."""
    location = Storage(out)
    try:
        before = read_meta(out)
    except MissingError:
        return
    if not before.selection:
        raise DataError(f"{out}: holds an index that is no selection; give another --out")
    location.delete("index.json")


def meta_of(source: Meta, shards: Sequence[Shard], selection: str) -> Meta:
    """The format of the images of some shards; labels mean what they mean in the set."""
    sizes = {(shard.height, shard.width) for shard in shards}
    height, width = sizes.pop() if len(sizes) == 1 else (0, 0)
    channels = max(shard.channels for shard in shards)
    return source._replace(channels=channels, height=height, width=width, selection=selection)
