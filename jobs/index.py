"""Make the index of shards made by anybody: python -m jobs.index s3://bucket/train/"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tqdm import tqdm

from cluster.storage import join
from datasets.indexing import index_folder
from jobs.cli import run


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m jobs.index", description=__doc__.partition(":")[0])
    parser.add_argument("url", help="folder of .tar shards, path or URL")
    parser.add_argument("--out", default="", help="where the index goes (default: URL/index)")
    parser.add_argument(
        "--levels", type=int, default=256, help="L, if pixels are stored as levels 0..L-1 (default 256)"
    )
    parser.add_argument("--class-names", default="", help="names of the classes, separated by commas")
    options = parser.parse_args(arguments)
    names = tuple(filter(None, options.class_names.split(",")))
    location = options.out or join(options.url, "index")
    with tqdm(unit=" shards", disable=not sys.stderr.isatty()) as bar:
        meta, shards = index_folder(options.url, location, options.levels, names, lambda done: bar.update(done))
    images = sum(shard.images for shard in shards)
    size = f"{meta.width} x {meta.height}" if meta.width else "of different sizes"
    what = f"{images:,} images, {size}, {meta.channels} channels, {meta.classes} classes"
    print(f"indexed {what}, in {len(shards)} shards: {location}")
    return 0


if __name__ == "__main__":
    run(main)
