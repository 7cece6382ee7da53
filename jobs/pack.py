"""Pack images into WebDataset shards with an index: python -m jobs.pack --source digits --out data/digits"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tqdm import tqdm

from datasets.pack import pack
from datasets.sources.binarized_mnist import BinarizedMnist
from datasets.sources.cifar10 import Cifar10
from datasets.sources.digits import Digits
from datasets.sources.idx import KNOWN, Idx
from datasets.sources.source import SPLITS, Source
from jobs.cli import run
from jobs.errors import ConfigError

SOURCES = ("digits", "idx", "binarized", "cifar10")


def main(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    source = _source(options)
    total = sum(source.count(split) for split in SPLITS)
    with tqdm(total=total, unit=" images", disable=not sys.stderr.isatty()) as bar:
        packed = pack(source, options.out, options.shard_images, bar.update)
    for split in packed:
        verb = "packed" if split.written else "already packed:"
        size = f"{split.images:,} images in {split.shards} shards, {split.bytes / 1e6:.1f} MB"
        print(f"{verb} {size} at {split.url}")
    return 0


def _source(options: argparse.Namespace) -> Source:
    if options.source == "digits":
        return Digits()
    if not options.input:
        raise ConfigError(f"--source {options.source} needs --from with the folder (path or URL) of its files")
    if options.source == "idx":
        return Idx(options.input, "static" if options.binarise else "", options.expect)
    return BinarizedMnist(options.input) if options.source == "binarized" else Cifar10(options.input)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m jobs.pack", description=__doc__.partition(":")[0])
    parser.add_argument(
        "--source", choices=SOURCES, required=True, help="digits: the embedded scans; idx: (Fashion-)MNIST"
    )
    parser.add_argument("--out", required=True, help="folder, path or URL; gets train/ and validation/")
    parser.add_argument("--from", dest="input", default="", help="folder, path or URL, of the source's files")
    parser.add_argument("--expect", choices=sorted(KNOWN), help="idx: check the files' md5 against this set's")
    parser.add_argument("--binarise", action="store_true", help="idx: a pixel becomes 1 from 128 on, else 0")
    parser.add_argument(
        "--shard-images", type=int, help="images a shard (default: an eighth of the set, at most 10,000)"
    )
    return parser


if __name__ == "__main__":
    run(main)
