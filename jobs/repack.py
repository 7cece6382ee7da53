"""Copy a set or a selection into shards of its own: python -m jobs.repack laion --index selections/large --out large

The members of each sample are copied unchanged; the new shards are indexed with the options of the old index. Shards
are written by all cores of this machine, or by all of a Ray cluster if submitted to one (`ray job submit`). An
interrupted run is continued by the same command.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from cluster.storage.storage import absolute, join
from datasets.packing.pack import MAX_IMAGES, MIN_SHARDS
from datasets.packing.repack import Repacked, forget_records, is_repacked, repack
from datasets.shards.index import Index
from datasets.shards.index_files import Meta
from datasets.shards.indexing import IndexOptions, index_shards
from datasets.shards.parquet_columns import PARQUET
from jobs.cli import check_at_least_one, command_parser, progress_bar, run
from jobs.errors import ConfigError
from jobs.index import scan_all
from jobs.ray.tasks import each


def main(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    check_at_least_one(options, "shard_images")
    url, out = absolute(options.url), absolute(options.out)
    location = options.index and absolute(options.index)
    if out == url or out.startswith(f"{url}/"):
        raise ConfigError(f"--out {out}: is the set itself, or in it; give another folder")
    index = Index.open(url, location)
    count = options.shard_images or max(1, min(MAX_IMAGES, -(-index.images // MIN_SHARDS)))
    if is_repacked(index, out, count):
        new = Index.open(out)
        print(f"already repacked: {new.images:,} images in {len(new):,} shards at {out}")
        return 0
    spread: Callable[..., Iterable[Repacked]] = partial(each, processes=options.processes)
    size = 0
    with progress_bar(index.images) as bar:
        for shard in repack(index, url, location, out, count, spread):
            size += shard.bytes
            bar.update(shard.images)
    how, lost = index_options(index.meta)
    done = index_shards(out, join(out, "index"), how, partial(scan_all, processes=options.processes))
    forget_records(out)
    if lost:
        print(f"warning: columns of Parquet files are not copied: {', '.join(lost)}", file=sys.stderr)
    images = sum(shard.images for shard in done.shards)
    print(f"repacked {images:,} images in {len(done.shards):,} shards, {size / 1e6:.1f} MB: data.shards={out}")
    return 0


def index_options(meta: Meta) -> tuple[IndexOptions, list[str]]:
    """How the new shards are indexed, and the columns that cannot be made of them."""
    lost = [column for column in meta.columns if column.partition(".")[0] == PARQUET]
    columns = tuple(column for column in meta.columns if column not in lost)
    return IndexOptions(
        meta.levels, meta.class_names, meta.image, meta.labels.place, meta.labels.named, columns, "stop"
    ), lost


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("repack", __doc__)
    parser.add_argument("url", help="folder or pattern of .tar shards")
    parser.add_argument(
        "--index", default="", help="folder of the index, such as a selection (default: <folder>/index)"
    )
    parser.add_argument("--out", required=True, help="folder (path or URL) of the new shards")
    parser.add_argument(
        "--shard-images", type=int, help="images per shard (default: an eighth of the set, at most 10,000)"
    )
    parser.add_argument("--processes", type=int, help="processes (default: one per core)")
    return parser


if __name__ == "__main__":
    run(main)
