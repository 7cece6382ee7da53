"""Select samples of a set by SQL over its columns: python -m jobs.select data/laion --where "width > 255" --out large

The result is an index of the same shards: `data.shards` stays, `data.index` names it. Columns are those of the index
(python -m jobs.index --columns ...) and those that a job has derived (--columns URL); dotted names are fields.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from shlex import quote

from cluster.storage.storage import absolute
from datasets.selection.query import Wanted
from datasets.selection.select import Call, Made, Selection, Split, select
from datasets.selection.write import Rows, Selected
from datasets.shards.index import Index
from jobs.cli import command_parser, run
from jobs.errors import ConfigError
from jobs.ray.tasks import each

_EXCESS = 1.5  # bytes read over bytes selected, from which on a selection should be written into shards of its own


def main(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    url, out = absolute(options.url), absolute(options.out)
    index = Index.open(url, options.index and absolute(options.index))
    wanted = Wanted(options.where, options.deduplicate, options.sample)
    splits = [_split(text) for text in options.split]
    spread = partial(_spread, processes=options.processes)
    done = select(index, out, wanted, splits, [absolute(columns) for columns in options.columns], spread)
    for columns, missing in done.missing.items():
        if missing:
            print(f"warning: {columns}: {missing:,} of {done.images:,} samples have no row (null)", file=sys.stderr)
    _print(done, wanted, url)
    return 0


def _print(done: Selection, wanted: Wanted, url: str) -> None:
    found = done.found
    print(f"{found.matching:,} of {done.images:,} images match", end="")
    if wanted.deduplicate:
        print(f", {found.distinct:,} without {found.matching - found.distinct:,} duplicates", end="")
    if wanted.sample is not None:
        print(f", {len(found.places):,} sampled", end="")
    print()
    for made in done.made:
        print(f"selected {made.images:,} images in {made.shards:,} shards: data.shards={url} data.index={made.url}")
        _warn(made, url)


def _warn(made: Made, url: str) -> None:
    if made.excess > _EXCESS:
        print(
            f"warning: {made.url}: reading fetches {made.excess:.1f} times the bytes of the selected samples, "
            "which are far apart in their shards; to read them often, write shards of their own: python -m jobs.repack "
            f"{quote(url)} --index {quote(made.url)} --out FOLDER",
            file=sys.stderr,
        )


def _spread(call: Call, parts: list[list[Rows]], processes: int | None) -> Iterable[list[Selected]]:
    return each(call, parts, processes)


def _split(text: str) -> Split:
    name, _, share = text.rpartition(":")
    try:
        return name, float(share)
    except ValueError as error:
        raise ConfigError(f"--split {text}: not NAME:SHARE, such as validation:0.05") from error


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("select", __doc__)
    parser.add_argument("url", help="folder or pattern of .tar shards")
    parser.add_argument("--index", default="", help="folder of their index (default: <folder>/index)")
    parser.add_argument("--out", required=True, help="folder of the new index")
    parser.add_argument("--where", default="", help='condition in SQL: "width >= 256 AND json.similarity > 0.3"')
    parser.add_argument(
        "--deduplicate",
        choices=("crc", "phash"),
        default="",
        help="keep the first of the images with the same bytes, or with the same perceptual hash",
    )
    parser.add_argument("--sample", type=_count, help="then keep this many images, chosen by a hash of their keys")
    parser.add_argument(
        "--split",
        action="append",
        default=[],
        metavar="NAME:SHARE",
        help="write <out>/NAME with this share, chosen by a hash of the keys; may be repeated",
    )
    parser.add_argument(
        "--columns",
        action="append",
        default=[],
        metavar="URL",
        help="columns that a job has derived (<URL>/columns), joined by key; may be repeated",
    )
    parser.add_argument("--processes", type=int, help="processes (default: one per core)")
    return parser


def _count(text: str) -> int:
    if (count := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{count} is not a number of images")
    return count


if __name__ == "__main__":
    run(main)
