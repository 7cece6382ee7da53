"""Compress images with a run's or an export's model, without loss: python -m jobs.compress RUN SET --out FILE

The file has about as many bits as the model's negative bound. `jobs.decompress` makes shards of it again, with the same
model, versions and device. --table compares it with the bound, PNG, WebP and JPEG XL on the same images.
"""

from __future__ import annotations

import argparse
import operator
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cluster.storage.storage import Storage, absolute
from jobs.cli import check_at_least_one, command_parser, progress_bar, run
from jobs.compression.container import Container, Header, packed, pixels_crc
from jobs.compression.environment import environment
from jobs.compression.table import report_table
from jobs.errors import ConfigError
from jobs.evaluating.opened import Opened, opened
from jobs.sampling.plan import weights_checksum
from trainer.ans.stack import Stack
from trainer.checkpoints.weights import HELP as WEIGHTS
from trainer.coding.streams import coder_of, decode_images, encode_images, lanes_for, width_for
from trainer.condition_values import Condition, join_values, map_value
from trainer.models.base import condition
from trainer.models.diffusion import DiffusionBase


@dataclass(frozen=True)
class ImageSet:
    """All images of a set, in its order, with their conditions."""

    images: Tensor  # uint8 [N, C, H, W]
    condition: Condition


def main(arguments: Sequence[str]) -> None:
    """Compress, write the file, and print its size; with --table the comparison too."""
    options = _parser().parse_args(arguments)
    check_at_least_one(options, "count", "steps", "lanes", "draws")
    options.run, options.out = absolute(options.run), absolute(options.out)
    own = opened(_settings(options))
    if "shuffled" in own.uses.values():
        raise ConfigError("--condition shuffled: the conditions of other images tell nothing about these")
    images = _read(own)
    began = time.perf_counter()
    container = _encoded(own, images, options)
    seconds = time.perf_counter() - began
    data = container.to_bytes()
    if options.check or options.table:
        began = time.perf_counter()
        _check(own, container, images)
        decoding = time.perf_counter() - began
    folder, _, name = options.out.rpartition("/")
    Storage(folder).write(name, data)
    for line in _lines(own, container, data, seconds):
        print(line)
    if options.check or options.table:
        print(f"decoded again: the same pixels, {len(images.images) / decoding:,.1f} images/s")
    if options.table:
        speeds = len(images.images) / seconds, len(images.images) / decoding
        for line in report_table(own, images.images, container, len(data), speeds, options.draws):
            print(line)


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    """The options as evaluations take them."""
    more = {
        "split": options.set,
        "batch": None,
        "images": options.count,
        "seed": 0,
        "samples": options.draws,
        "bound": "elbo",
    }
    return vars(options) | more | {"precision": "fp32", "by_noise_level": None}


def _read(own: Opened) -> ImageSet:
    """Every image that is not quarantined."""
    images, conditions = [], []
    with own.batches() as batches:
        for batch in batches:
            kept = batch.weights > 0
            images.append(batch.images[kept])
            given = condition(own.model, batch.conditions, own.uses)
            conditions.append(
                {name: map_value(operator.itemgetter(kept), each) for name, each in (given or {}).items()}
            )
    for line in own.warnings(own.uses, sum(map(len, images))):
        print(f"warning: {line}", file=sys.stderr)
    joined = {name: join_values([part[name] for part in conditions]) for name in conditions[0]}
    return ImageSet(torch.cat(images).contiguous(), joined or None)


def _encoded(own: Opened, images: ImageSet, options: argparse.Namespace) -> Container:
    model, count = own.model, len(images.images)
    coder = coder_of(model, own.device)
    lanes = min(options.lanes or lanes_for(count), count)
    stack = Stack(lanes, width_for(count, lanes, model.spec.dimensions))
    with progress_bar(count, what="encoding") as bar:
        encode_images(coder, stack, images.images, images.condition, bar.update)
    conditions, blob = packed(images.condition)
    header = Header(
        model=weights_checksum(model),
        weights=options.weights,
        spec=model.spec[:4],
        count=count,
        lanes=lanes,
        width=stack.width,
        words=len(stack.words),
        steps=model.diffuser.chain_steps if isinstance(model, DiffusionBase) else None,
        conditions=conditions,
        condition_bytes=len(blob),
        crc=pixels_crc(images.images.cpu()),
        environment=environment(own.device),
    )
    return Container(header, blob, stack)


def _check(own: Opened, container: Container, images: ImageSet) -> None:
    """Raises ConfigError unless the file decodes to the images."""
    stack = Stack.restore(container.stack.heads, container.stack.words)
    coder = coder_of(own.model, own.device)
    with progress_bar(len(images.images), what="decoding") as bar:
        made = decode_images(coder, stack, len(images.images), images.condition, own.device, bar.update)
    if not torch.equal(made, images.images.cpu()) or not stack.is_initial():
        raise ConfigError(
            "the images did not decode to themselves: networks do not repeat their results on this device"
        )


def _lines(own: Opened, container: Container, data: bytes, seconds: float) -> list[str]:
    header, initial = container.header, container.stack.initial_bits / 8
    dimensions = own.model.spec.dimensions * header.count

    def bpd(size: float) -> str:
        return f"{8 * size / dimensions:.4f} bpd"

    beside = len(data) - 8 * container.stack.heads.size - 2 * header.words - header.condition_bytes
    lines = [
        f"{header.count:,} images in {len(data):,} bytes, {bpd(len(data))}: {own.settings['out']}",
        f"  {initial:,.0f} bytes are the initial bits of {header.lanes} lanes, {beside:,} the header; without initial "
        f"bits {bpd(len(data) - initial)}",
    ]
    if header.conditions:
        names = " and ".join(name for name, _ in header.conditions)
        lines.append(f"  {header.condition_bytes:,} bytes are the conditions ({names})")
    return [*lines, f"encoded {header.count / seconds:,.1f} images/s"]


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("compress", __doc__)
    parser.add_argument("run", help="URL of a run folder, or of an export")
    parser.add_argument("set", help="validation or train of the run, or a URL of shards")
    parser.add_argument("--out", required=True, help="file, path or URL")
    parser.add_argument("--index", default="", help="with a URL of shards: URL of their index (default: <set>/index)")
    parser.add_argument("--count", type=int, metavar="N", help="N images only, spread evenly over the set")
    parser.add_argument("--weights", default="ema", help=WEIGHTS)
    parser.add_argument("--steps", type=int, help="steps T of a diffusion's chain (default: of the run, else 128)")
    parser.add_argument(
        "--condition",
        default="given",
        metavar="given|none|NAME=...",
        help="given (default): conditions are stored in the file and the model is given them; none: they are left out",
    )
    parser.add_argument(
        "--lanes",
        type=int,
        help="images coded side by side (default: one for each 100 images, at most 32); more is faster and needs more "
        "initial bits",
    )
    parser.add_argument("--check", action="store_true", help="decode again and compare before the file is written")
    parser.add_argument("--table", action="store_true", help="compare with the bound, PNG, WebP and JPEG XL, and plot")
    parser.add_argument("--draws", type=int, default=16, help="with --table: draws of the latents for the bound")
    return parser


if __name__ == "__main__":
    run(main)
