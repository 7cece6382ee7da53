"""Selections of 10,000,000 samples in 1,000 shards: python -m tests.benchmarks.selection [--shards 1000]

The index is made up; its shards do not exist. Says the CPU time of queries, and of writing the selections, in one
process with one thread; `tests.benchmarks.order` opens and orders an index of 1,000,000 shards.

Measured: docs/shards-in-the-wild.md.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

IMAGES = 10_000  # of a shard
QUERIES = {
    "width >= 512": {},
    "width >= 512 AND json.similarity > 0.3 AND json.NSFW = 'UNLIKELY'": {},
    "json.similarity > (SELECT quantile_cont(json.similarity, 0.9) FROM samples)": {},
    "width >= 256": {"deduplicate": "crc"},
    "height >= 256": {"deduplicate": "phash"},
    "": {"sample": 1_000_000},
}


def make(folder: str, shards: int) -> None:
    """An index of shards that do not exist."""
    from cluster.storage.storage import Storage
    from datasets.shards.column_tables import write_columns
    from datasets.shards.index_files import QUARANTINE_SCHEMA, Meta, Shard, encode_table, member_file, write_index
    from datasets.shards.member_tables import checksum
    from datasets.shards.sample_columns import SCHEMA

    location, rows = Storage(folder), []
    kinds = np.array(["UNLIKELY", "UNSURE", "NSFW"])
    for number in range(shards):
        noise = np.random.default_rng(number)
        name = f"{number:05d}.tar"
        keys = pa.array([f"{number:05d}{i:04d}" for i in range(IMAGES)])
        sizes = noise.integers(2_000, 200_000, IMAGES)
        crc = noise.integers(0, 1 << 32, IMAGES, dtype=np.uint32)
        crc[:100], sizes[:100] = 7, 5_000  # duplicates, in every shard
        offset = np.concatenate([[512], 512 + np.cumsum(-(-sizes // 512) * 512 + 512)])
        members = {"key": keys, "jpg.offset": offset[:-1], "jpg.size": sizes, "jpg.crc32": crc}
        table = pa.table(members)
        location.write(f"members/{member_file(name)}", encode_table(table))
        width = noise.choice([128, 256, 512, 1024], IMAGES).astype(np.int32)
        values = [keys, width, width, pa.array(["jpeg"] * IMAGES), pa.array([False] * IMAGES)]
        values += [np.ones(IMAGES, np.uint8), sizes, crc, pa.nulls(IMAGES, pa.int64()), np.full(IMAGES, 60, np.int32)]
        columns = pa.Table.from_arrays(
            [pa.array(v, f.type) for v, f in zip(values, SCHEMA, strict=True)], schema=SCHEMA
        )
        columns = columns.append_column("json.similarity", pa.array(noise.random(IMAGES)))
        columns = columns.append_column("json.NSFW", pa.array(kinds[noise.integers(0, 3, IMAGES)].tolist()))
        columns = columns.append_column("phash", pa.array(noise.integers(0, 1 << 40, IMAGES, dtype=np.uint64)))
        write_columns(location, name, columns)
        size = int(offset[-1]) + 1024
        rows.append(Shard(name, IMAGES, size, "x", checksum(table), 3, 0, 0, 0, 0, "", "0", read_bytes=size))
    write_index(location, Meta(3, 0, 0), rows, QUARANTINE_SCHEMA.empty_table(), columns.schema)


def measure(folder: str) -> None:
    from datasets.selection.query import Wanted, find
    from datasets.selection.samples import SampleColumns
    from datasets.selection.select import select
    from datasets.shards.index import Index

    index = Index.open("/nowhere", folder)
    print(f"{len(index):,} shards, {index.images:,} samples")
    columns = SampleColumns(index)
    for where, options in QUERIES.items():
        began, cpu = time.perf_counter(), time.process_time()
        found = find(columns, Wanted(where, **options))
        spent = f"{time.process_time() - cpu:.1f} s of CPU, {time.perf_counter() - began:.1f} s"
        print(f"{Wanted(where, **options)!s:<90} {len(found.places):>10,} of {index.images:,}: {spent}", flush=True)
    began, cpu = time.perf_counter(), time.process_time()
    done = select(index, f"{folder}/selection", Wanted("width >= 512"), [("validation", 0.01), ("train", 0.99)])
    spent = f"{time.process_time() - cpu:.1f} s of CPU, {time.perf_counter() - began:.1f} s"
    print(f"the first with a split, its two indexes written: {[made.images for made in done.made]}: {spent}")
    print(f"peak memory {peak_memory():.0f} MB")


def peak_memory() -> float:
    """The most that this process has held since it began, MB."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shards", type=int, default=1000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        make(place, options.shards)
        measure(place)
