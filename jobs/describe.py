"""Describe a set by its index: python -m jobs.describe data/laion --pictures laion.png

Counts, sizes, labels, captions, duplicates, what is quarantined, histograms, and a contact sheet of random images.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cluster.storage.storage import Storage, absolute
from datasets.reading.contact_sheet import contact_sheet
from datasets.shards.description import describe_set
from datasets.shards.index import Index
from jobs.cli import command_parser, progress_bar, run


def main(arguments: Sequence[str]) -> int:
    parser = command_parser("describe", __doc__)
    parser.add_argument("url", help="folder or pattern of .tar shards")
    parser.add_argument("--index", default="", help="folder of the index (default: <folder>/index)")
    parser.add_argument("--pictures", metavar="FILE", help="write a contact sheet of random images to this PNG")
    parser.add_argument("--count", type=int, default=64, help="images of the contact sheet (default 64)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of images (default 0)")
    options = parser.parse_args(arguments)
    index = Index.open(absolute(options.url), options.index and absolute(options.index))
    with progress_bar(index.images) as bar:
        lines = list(describe_set(index, bar.update))
    print(*lines, sep="\n", flush=True)
    if options.pictures:
        sheet, bad = contact_sheet(index, max(options.count, 1), options.seed)
        folder, _, name = absolute(options.pictures).rpartition("/")
        Storage(folder).write(name, sheet)
        print(f"{min(max(options.count, 1), index.images)} random images: {options.pictures}")
        for line in bad:
            print(f"warning: {line}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    run(main)
