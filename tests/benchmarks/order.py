"""The index and the order at 1,000,000 shards and 10^10 images: python -m tests.benchmarks.order

Says the time and memory of opening, in a process of its own, and the time to locate batches of 4,096.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

SHARDS, IMAGES = 1_000_000, 10_000
BATCH, STREAMS, WINDOW = 4096, 64, 256


def make(folder: str) -> None:
    """An index of shards that do not exist."""
    from cluster.storage.storage import Storage
    from datasets.shards.index_files import QUARANTINE_SCHEMA, SCHEMA, Meta, encode_table, write_index
    from datasets.shards.sample_columns import SCHEMA as COLUMNS

    location = Storage(folder)
    write_index(location, Meta(3, 256, 256), [], QUARANTINE_SCHEMA.empty_table(), COLUMNS)
    rows = {
        "name": [f"part-{i // 1000:05d}/{i:08d}.tar" for i in range(SHARDS)],
        "etag": [f'"{i:032x}"' for i in range(SHARDS)],
        "crc32": np.arange(SHARDS, dtype=np.uint32),
        "images": np.full(SHARDS, IMAGES),
        "bytes": np.full(SHARDS, IMAGES * 10_000),
        "channels": np.full(SHARDS, 3, np.int32),
        "height": np.full(SHARDS, 256, np.int32),
        "width": np.full(SHARDS, 256, np.int32),
        "classes": np.zeros(SHARDS, np.int64),
        "grey": np.zeros(SHARDS, np.int64),
        "grey_key": [""] * SHARDS,
        "colour_key": ["00000"] * SHARDS,
        "quarantined": np.zeros(SHARDS, np.int64),
        "skipped": np.zeros(SHARDS, np.int64),
        "read_bytes": np.full(SHARDS, IMAGES * 10_000),
    }
    columns = [pa.array(rows[field.name], field.type) for field in SCHEMA]
    location.write("shards.arrow", encode_table(pa.Table.from_arrays(columns, schema=SCHEMA)))


def measure(folder: str) -> None:
    from datasets.order.shuffled import ShuffledOrder
    from datasets.shards.index import Index

    before, mapped, own = peak_memory(), _status("RssFile"), _status("RssAnon")
    began, cpu = time.perf_counter(), time.process_time()
    index = Index.open("/nowhere", folder)
    order = ShuffledOrder(index.counts, 1, STREAMS, WINDOW)
    order.locate(order.places(np.arange(BATCH)))
    opened, cpu = time.perf_counter() - began, time.process_time() - cpu
    held, mapped, own = peak_memory(), _status("RssFile") - mapped, _status("RssAnon") - own
    fingerprint = time.perf_counter()
    _ = index.fingerprint
    fingerprint = time.perf_counter() - fingerprint
    times = []
    for step in range(500):
        positions = np.arange(step * BATCH, (step + 1) * BATCH) + 7 * order.images // 10
        began = time.perf_counter()
        order.locate(order.places(positions))
        times.append(time.perf_counter() - began)
    print(f"{SHARDS:,} shards, {order.images:,} images")
    print(f"opened, first batch located: {opened:.2f} s ({cpu:.2f} s of CPU); fingerprint: {fingerprint:.2f} s")
    print(f"peak memory {held - before:.0f} MB more than after the imports ({before:.0f} MB)")
    print(
        f"then held: {own:.0f} MB of its own, and {mapped:.0f} MB of the mapped index, which all ranks of a host share"
    )
    print(f"at the end {peak_memory():.0f} MB")
    most = f"{1000 * statistics.median(times):.2f} ms (median), {1000 * max(times):.2f} ms (most)"
    print(f"{BATCH} positions located in {most}")


def peak_memory() -> float:
    """The most that this process has held since it began, MB."""
    return _status("VmHWM")


def _status(name: str) -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{name}:")[2].split()[0]) / 1024


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(sys.argv[1])
    else:
        with tempfile.TemporaryDirectory() as place:
            make(place)
            subprocess.run([sys.executable, "-m", "tests.benchmarks.order", place], check=True)
