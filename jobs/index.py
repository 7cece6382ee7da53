"""Make or update the index of WebDataset shards: python -m jobs.index s3://bucket/train/

Shards are scanned by all cores of this machine, or by all of a Ray cluster if submitted to one (`ray job submit`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from functools import partial

from tqdm import tqdm

from cluster.storage.storage import Storage, absolute, join
from datasets.shards.index import Index
from datasets.shards.index_files import Shard
from datasets.shards.indexing import index_shard, index_shards
from datasets.shards.shard_list import ShardList
from jobs.cli import command_parser, run
from jobs.ray.tasks import each


def main(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    names = tuple(filter(None, options.class_names.split(",")))
    for url in map(absolute, options.urls):
        location = absolute(options.out) if options.out else join(ShardList.parse(url).folder, "index")
        scan = partial(_scan_all, processes=options.processes)
        with tqdm(unit=" shards", disable=not sys.stderr.isatty()) as bar:
            done = index_shards(url, location, options.levels, names, scan, bar.update)
        meta, shards = done.meta, done.shards
        size = f"{meta.width} x {meta.height}" if meta.width else "of different sizes"
        what = f"{sum(shard.images for shard in shards):,} images, {size}, {meta.channels} channels"
        scanned = f"{done.scanned} of them read, the others are unchanged" if done.scanned < len(shards) else "all read"
        if mixed := Index.open(url, location).mixed_colours:
            print(f"warning: {mixed}", file=sys.stderr)
        print(f"indexed {what}, {meta.classes} classes, in {len(shards)} shards ({scanned}): {location}")
    return 0


def _scan_all(folder: str, names: list[str], location: str, processes: int | None) -> Iterator[Shard]:
    return each(partial(_scan, folder, location), names, processes)


def _scan(folder: str, location: str, name: str) -> Shard:
    return index_shard(Storage(folder), name, Storage(location))


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("index", __doc__)
    parser.add_argument(
        "urls", nargs="+", help="folders of .tar shards, or patterns such as s3://bucket/a-{000..099}.tar"
    )
    parser.add_argument("--out", default="", help="folder of the index (default: <folder>/index)")
    parser.add_argument("--levels", type=int, help="number of levels L, for pixel values 0..L-1 (default 256)")
    parser.add_argument("--class-names", default="", help="class names, separated by commas")
    parser.add_argument("--processes", type=int, help="processes (default: one per core)")
    return parser


if __name__ == "__main__":
    run(main)
