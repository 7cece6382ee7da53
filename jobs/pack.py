"""Pack images into WebDataset shards with an index: python -m jobs.pack --source digits --out data/digits

An interrupted run is continued by the same command. A folder of files is packed by all cores of this machine, or by all
of a Ray cluster if submitted to one (`ray job submit`).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from pydantic import ValidationError

from cluster.storage.sizes import parse_bytes
from cluster.storage.storage import absolute, is_local
from datasets.images.decode import BACKGROUND
from datasets.images.kinds import MAX_PIXELS
from datasets.packing.encoding import Encoding
from datasets.packing.pack import BadImagesError, Packed, PackOptions, pack
from datasets.packing.sources.binarized_mnist import BinarizedMnist
from datasets.packing.sources.cifar10 import Cifar10
from datasets.packing.sources.digits import Digits
from datasets.packing.sources.folder import ImageFolder
from datasets.packing.sources.held_out import HeldOut
from datasets.packing.sources.icons.source import Icons
from datasets.packing.sources.idx import KNOWN, Idx
from datasets.packing.sources.source import InMemory, Source
from datasets.packing.write import BadImage, Written
from datasets.shards.index import Index
from jobs.cli import command_parser, progress_bar, run
from jobs.errors import ConfigError
from jobs.ray.tasks import each

SOURCES = ("digits", "idx", "binarized", "cifar10", "icons", "folder")


def main(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    pack_options = _pack_options(options)
    source = _source(options)
    print(*source.found(), sep="\n", flush=True)
    total = sum(source.count(split) for split in source.splits)
    spread: Callable[..., Iterable[Written]] = partial(each, processes=options.processes) if source.parallel else map
    try:
        with progress_bar(total) as bar:
            packed = pack(source, absolute(options.out), pack_options, bar.update, spread)
    except BadImagesError as error:
        _print_bad(error.bad)
        raise
    for split in packed:
        _print_split(split)
    return 0


def _print_split(split: Packed) -> None:
    size = f"{split.images:,} images in {split.shards} shards, {split.bytes / 1e6:.1f} MB at {split.url}"
    if split.compared:
        print(f"{'packed' if split.written else 'already packed:'} {size}")
    else:
        print(f"already packed by an earlier version, whose source and options are not known: {size}")
    if split.transparent:
        print(f"  {split.transparent:,} images with transparent pixels: composited on {BACKGROUND}")
    if split.bad:
        print(f"  {len(split.bad):,} images left out, which cannot be packed")
        _print_bad(split.bad)
    if mixed := Index.open(split.url).mixed_colours:
        print(f"warning: {mixed}", file=sys.stderr)


def _print_bad(bad: Iterable[BadImage]) -> None:
    for image in bad:
        print(f"{image.where}: {image.reason}", file=sys.stderr)


def _source(options: argparse.Namespace) -> Source:
    if options.source == "folder":
        return ImageFolder(_input(options), options.held_out, not options.no_classes, options.follow_links)
    source = _in_memory(options)
    return HeldOut(source, options.held_out) if options.held_out else source


def _in_memory(options: argparse.Namespace) -> InMemory:
    if options.source == "digits":
        return Digits()
    if options.source == "icons":
        height, width = options.size or (24, 24)
        return Icons(height, width, options.levels, options.colour)
    if options.source == "idx":
        return Idx(_input(options), "static" if options.binarise else "", options.expect)
    return BinarizedMnist(_input(options)) if options.source == "binarized" else Cifar10(_input(options))


def _input(options: argparse.Namespace) -> str:
    url: str = options.input
    if not url:
        raise ConfigError(f"--source {options.source}: give the folder (path or URL) of its files by --from")
    return os.path.expanduser(url) if is_local(url) else url


def _pack_options(options: argparse.Namespace) -> PackOptions:
    try:
        size = parse_bytes(options.shard_size) if options.shard_size else None
    except (ValueError, ValidationError) as error:
        raise ConfigError(f"--shard-size: {error}") from error
    assert size is None or isinstance(size, int)
    shape = tuple(options.size) if options.size else None
    if shape and (min(shape) < 1 or shape[0] * shape[1] > MAX_PIXELS):
        raise ConfigError(f"--size {shape[0]} {shape[1]}: not a size between 1 and {MAX_PIXELS:,} pixels")
    if options.held_out is not None and not 0 <= options.held_out < 1:
        raise ConfigError(f"--held-out {options.held_out}: not a fraction from 0 to below 1")
    if options.shard_images is not None and options.shard_images < 1:
        raise ConfigError(f"--shard-images {options.shard_images}: not a positive number")
    if size is not None and size < 1:
        raise ConfigError(f"--shard-size {options.shard_size}: not a positive number of bytes")
    if not 1 <= options.quality <= 100:
        raise ConfigError(f"--quality {options.quality}: not a number from 1 to 100")
    how = Encoding(shape if options.source != "icons" else None, options.encoding, options.quality)
    return PackOptions(options.shard_images, size, how, options.on_bad == "skip")


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("pack", __doc__)
    parser.add_argument(
        "--source",
        choices=SOURCES,
        required=True,
        help="digits: scikit-learn's; idx: MNIST or Fashion-MNIST; binarized: binarized MNIST; "
        "icons: captioned icons of the package qtawesome; folder: image files",
    )
    parser.add_argument(
        "--out", required=True, help="output folder (path or URL), in which train/, validation/ and test/ are written"
    )
    parser.add_argument("--from", dest="input", default="", help="folder (path or URL) of the source's files")
    parser.add_argument("--expect", choices=sorted(KNOWN), help="idx: compare the files' MD5 with this set's")
    parser.add_argument("--binarise", action="store_true", help="idx: set pixel values from 128 on to 1, others to 0")
    parser.add_argument(
        "--held-out",
        type=float,
        help="fraction of the training images held out as validation, for sets without one (default: 0.05 for a folder "
        "without split folders, else 0)",
    )
    parser.add_argument("--no-classes", action="store_true", help="folder: names of folders are no classes")
    parser.add_argument(
        "--follow-links", action="store_true", help="folder: also follow links to folders and captions outside it"
    )
    parser.add_argument(
        "--on-bad",
        choices=("stop", "skip"),
        default="stop",
        help="images that cannot be packed: fail after all are listed (default), or leave them out",
    )
    parser.add_argument("--levels", type=int, default=256, help="icons: grey levels, 2 to 256 (default 256)")
    parser.add_argument("--colour", action="store_true", help="icons: draw in two colours, which the caption names")
    parser.add_argument(
        "--shard-images", type=int, help="images per shard (default: an eighth of the set, at most 10,000)"
    )
    parser.add_argument("--shard-size", help="approximate bytes per shard, instead: 256MiB")
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="resize to cover this size, then crop the centre; icons: draw at this size (default 24 24)",
    )
    parser.add_argument("--encoding", choices=("png", "jpg", "webp"), help="re-encode (default: keep the files' bytes)")
    parser.add_argument("--quality", type=int, default=90, help="quality of jpg and webp (default 90)")
    parser.add_argument("--processes", type=int, help="folder: processes (default: one per core)")
    return parser


if __name__ == "__main__":
    run(main)
