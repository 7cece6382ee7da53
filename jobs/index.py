"""Make or update the index of WebDataset shards: python -m jobs.index s3://bucket/train/

Shards are scanned by all cores of this machine, or by all of a Ray cluster if submitted to one (`ray job submit`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from functools import partial

from cluster.storage.errors import StorageError
from cluster.storage.storage import Storage, absolute, join
from datasets.shards.bad_samples import BadSamplesError, describe_quarantine, summarise
from datasets.shards.index import Index
from datasets.shards.index_files import QUARANTINE
from datasets.shards.indexing import Indexed, IndexOptions, ScannedShard, index_shard, index_shards
from datasets.shards.scan import ScanOptions
from datasets.shards.shard_list import ShardList
from jobs.cli import command_parser, progress_bar, run
from jobs.errors import ConfigError
from jobs.ray.tasks import each

_MOST = 1000  # bad samples that --on-bad stop prints
_SOME = 20  # that are printed where they are too many


def main(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    classes = _listed(options.class_names)
    how = IndexOptions(
        options.levels,
        classes,
        options.image,
        options.labels,
        options.named_labels,
        _listed(options.columns),
        options.on_bad,
        options.max_bad,
    )
    urls = [absolute(url) for url in options.urls]
    folders = {ShardList.parse(url).folder for url in urls}
    if options.out and len(folders) > 1:
        raise ConfigError(
            f"--out is the index of one folder, but {len(folders)} are given: {', '.join(sorted(folders))}"
        )
    for url in urls:
        location = absolute(options.out) if options.out else join(ShardList.parse(url).folder, "index")
        scan = partial(scan_all, processes=options.processes)
        try:
            with progress_bar(None, "shards") as bar:
                done = index_shards(url, location, how, scan, bar.update)
        except BadSamplesError as error:
            _print_bad(error, _MOST if options.on_bad == "stop" else _SOME)
            raise
        except StorageError as error:
            if options.out or not str(error).startswith(location):
                raise
            raise ConfigError(f"{error}; --out writes the index elsewhere") from error
        _print_index(url, location, done)
    return 0


def _listed(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(filter(None, text.split(",")))


def _print_index(url: str, location: str, done: Indexed) -> None:
    meta, shards = done.meta, done.shards
    images, skipped = sum(shard.images for shard in shards), sum(shard.skipped for shard in shards)
    for warning in _warnings(url, location, done, images):
        print(f"warning: {warning}", file=sys.stderr)
    size = f"{meta.width} x {meta.height}" if meta.width else "of different sizes"
    scanned = f"{done.scanned} of them read, the others are unchanged" if done.scanned < len(shards) else "all read"
    print(
        f"indexed {images:,} images, {size}, {meta.channels} channels, {meta.classes} classes, in {len(shards)} shards "
        f"({scanned}): {location}"
    )
    if bad := sum(shard.quarantined for shard in shards):
        print(f"{images + bad:,} samples seen = {images:,} indexed + {bad:,} quarantined")
    if done.quarantine.num_rows:
        print(f"quarantined, listed in {join(location, QUARANTINE)}: {summarise(shards, done.quarantine)}")
    if skipped:
        print(
            f"skipped {skipped:,} files that belong to no sample: hidden, without an extension, or named like __meta__"
        )


def _warnings(url: str, location: str, done: Indexed, images: int) -> Iterator[str]:
    if done.lost:
        yield (
            f"{join(location, 'index.json')}: was damaged: now {done.meta.levels} levels and "
            f"{len(done.meta.class_names)} class names; if that is wrong, give --levels and --class-names"
        )
    if mixed := Index.open(url, location).mixed_colours:
        yield mixed
    if done.compressed:
        yield (
            f"{ShardList.parse(url).folder}: left out {len(done.compressed):,} compressed tars ({done.compressed[0]}): "
            "shards must be plain tars, which can be read in ranges"
        )
    if done.scattered:
        yield (
            f"{url}: the members of {done.scattered:,} samples are not adjacent: reading them takes a request each; "
            "tar --sort=name writes the members of a sample together"
        )
    if done.problems:
        yield f"{len(done.problems):,} shards have no columns from Parquet files (null): {done.problems[0]}"
    if done.meta.classes > max(images, 1):
        largest = max(done.shards, key=lambda shard: shard.classes)
        if largest.classes == done.meta.classes:
            yield (
                f"{join(ShardList.parse(url).folder, largest.name)}: has label {largest.classes - 1:,}: "
                f"{done.meta.classes:,} classes for {images:,} images"
            )


def _print_bad(error: BadSamplesError, most: int) -> None:
    rows = error.quarantine.num_rows
    if rows == 1:  # the error names it
        return
    for line in describe_quarantine(error.url, error.quarantine.slice(0, most)):
        print(line, file=sys.stderr)
    if rows > most:
        print(f"and {rows - most:,} more", file=sys.stderr)


def scan_all(
    folder: str, names: list[str], location: str, how: ScanOptions, processes: int | None
) -> Iterator[ScannedShard]:
    """Scan shards in `processes` processes (None: one per core), or on a Ray cluster."""
    return each(partial(_scan, folder, location, how), names, processes)


def _scan(folder: str, location: str, how: ScanOptions, name: str) -> ScannedShard:
    return index_shard(Storage(folder), name, Storage(location), how)


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("index", __doc__)
    parser.add_argument(
        "urls", nargs="+", help="folders of .tar shards, or patterns such as s3://bucket/a-{000..099}.tar"
    )
    parser.add_argument("--out", default="", help="folder of the index (default: <folder>/index)")
    parser.add_argument(
        "--levels", type=int, help="number of levels L, 2 to 256, for pixel values 0..L-1 (default 256)"
    )
    parser.add_argument("--class-names", help="class names, separated by commas; '' removes those of the index")
    parser.add_argument(
        "--image", help="extension of the images where samples have several: input.jpg; '' for their only image"
    )
    parser.add_argument("--labels", help="field of the .json members that has the label: json.category; '' for .cls")
    parser.add_argument(
        "--named-labels",
        action=argparse.BooleanOptionalAction,
        help="labels are class names, not numbers; classes are numbered by --class-names, then in alphabetical order",
    )
    parser.add_argument(
        "--columns",
        help="columns for jobs.select besides size, format, label and caption length, separated by commas: json.FIELD, "
        "parquet or parquet.FIELD (img2dataset's files), phash; added to those of the index ('' removes them)",
    )
    parser.add_argument(
        "--on-bad",
        choices=("quarantine", "stop"),
        default="quarantine",
        help="samples that cannot be used: list them in the index with reasons and leave them out (default), or fail",
    )
    parser.add_argument(
        "--max-bad", type=float, default=0.5, help="fail if more than this fraction of samples is bad (default 0.5)"
    )
    parser.add_argument("--processes", type=int, help="processes (default: one per core)")
    return parser


if __name__ == "__main__":
    run(main)
