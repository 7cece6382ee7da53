"""Pack images into WebDataset shards with an index: python -m jobs.pack --source digits --out data/digits

Interrupted, the same command goes on. A folder of files is packed by all cores, or by a Ray cluster it is submitted to.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from pydantic import ValidationError
from tqdm import tqdm

from cluster.storage.storage import absolute
from datasets.config import parse_bytes
from datasets.packing.pack import PackOptions, pack
from datasets.packing.sources.binarized_mnist import BinarizedMnist
from datasets.packing.sources.cifar10 import Cifar10
from datasets.packing.sources.digits import Digits
from datasets.packing.sources.folder import ImageFolder
from datasets.packing.sources.idx import KNOWN, Idx
from datasets.packing.sources.source import SPLITS, Source
from datasets.shards.index_files import Shard
from jobs.cli import run
from jobs.errors import ConfigError
from jobs.ray.tasks import each

SOURCES = ("digits", "idx", "binarized", "cifar10", "folder")


def main(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    how = _how(options)
    source = _source(options)
    total = sum(source.count(split) for split in SPLITS)
    spread: Callable[..., Iterable[Shard]] = partial(each, processes=options.processes) if source.parallel else map
    with tqdm(total=total, unit=" images", disable=not sys.stderr.isatty()) as bar:
        packed = pack(source, absolute(options.out), how, bar.update, spread)
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
    if options.source == "folder":
        return ImageFolder(options.input, options.held_out)
    if options.source == "idx":
        return Idx(options.input, "static" if options.binarise else "", options.expect)
    return BinarizedMnist(options.input) if options.source == "binarized" else Cifar10(options.input)


def _how(options: argparse.Namespace) -> PackOptions:
    try:
        size = parse_bytes(options.shard_size) if options.shard_size else None
    except (ValueError, ValidationError) as error:
        raise ConfigError(f"--shard-size: {error}") from error
    assert size is None or isinstance(size, int)
    shape = tuple(options.size) if options.size else None
    return PackOptions(options.shard_images, size, shape, options.encoding, options.quality)


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
        "--held-out", type=float, default=0.05, help="folder: the share held out, where it has no splits (default 0.05)"
    )
    parser.add_argument(
        "--shard-images", type=int, help="images a shard (default: an eighth of the set, at most 10,000)"
    )
    parser.add_argument("--shard-size", help="or bytes a shard, about: 256MiB")
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="resize to cover this and cut to the centre"
    )
    parser.add_argument("--encoding", choices=("png", "jpg", "webp"), help="encode anew (default: files as they are)")
    parser.add_argument("--quality", type=int, default=90, help="of jpg and webp")
    parser.add_argument("--processes", type=int, help="of this machine, for folders (default: its cores)")
    return parser


if __name__ == "__main__":
    run(main)
