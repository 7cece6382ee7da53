"""Restore the images that jobs.compress wrote, as indexed shards: python -m jobs.decompress RUN FILE --out SET

Raises an error, and writes nothing, where model, versions or device differ from those of the file, or where the pixels
are not those that were compressed (CRC-32).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from cluster.storage.errors import MissingError
from cluster.storage.storage import Storage, absolute, join
from datasets.packing.sources.source import Example
from datasets.packing.write import write_tar
from datasets.shards.indexing import IndexOptions, index_shards
from jobs.cli import command_parser, progress_bar, run
from jobs.compression.container import Container, Header, parse, pixels_crc
from jobs.compression.environment import differences, environment
from jobs.errors import ConfigError
from jobs.sampling.plan import weights_checksum
from trainer.ans.stack import ExhaustedError
from trainer.checkpoints.export import open_model
from trainer.coding.streams import coder_of, decode_images
from trainer.condition_values import Condition, map_value
from trainer.distributed.device import make_accelerator
from trainer.errors import TrainingError
from trainer.models import Model

SHARD = 1024  # images


def main(arguments: Sequence[str]) -> None:
    """Decode a file, check the pixels, write shards and their index."""
    options = _parser().parse_args(arguments)
    file, out = absolute(options.file), absolute(options.out)
    container = _opened(file)
    if next(iter(Storage(out).list()), None) is not None:
        raise ConfigError(f"--out {out}: is not empty; give another folder")
    model = open_model(absolute(options.run), container.header.weights).model
    _check_model(file, absolute(options.run), container.header, model)
    if container.header.steps is not None:
        model.set_steps(container.header.steps)
    device = make_accelerator("fp32").device
    threads = container.header.environment.get("threads", "")
    torch.set_num_threads(int(threads) if threads.isdecimal() and 0 < int(threads) < 1024 else 1)
    if (differs := differences(container.header.environment, environment(device))) and not options.anyway:
        raise ConfigError(
            f"{file}: was compressed with {differs}, where networks need not repeat their results; --anyway tries, and "
            "the pixels' checksum decides"
        )
    began = time.perf_counter()
    images, given = decoded(file, container, model.to(device), device)
    seconds = time.perf_counter() - began
    _write(out, images, given, model)
    print(f"{len(images):,} images, {len(images) / seconds:,.1f} a second, the pixels' checksum is right: {out}")


def decoded(file: str, container: Container, model: Model, device: torch.device) -> tuple[Tensor, Condition]:
    """The images, uint8 [N, C, H, W], and their conditions, on the CPU. Raises ConfigError if they are not those that
    were compressed.
    """
    header, stack = container.header, container.stack
    wrong = f"{file}: does not decode here to the pixels that were compressed; nothing was written"
    try:
        condition = container.condition
        given = condition and {
            name: map_value(lambda part: part.to(device), value) for name, value in condition.items()
        }
        with progress_bar(header.count, what="decoding") as bar:
            images = decode_images(coder_of(model, device), stack, header.count, given, device, bar.update)
    except (ExhaustedError, ValueError, IndexError, TrainingError) as error:
        raise ConfigError(wrong) from error
    if pixels_crc(images) != header.crc or not stack.is_initial():
        raise ConfigError(wrong)
    return images, condition


def _opened(file: str) -> Container:
    """Raises ConfigError if it is damaged or no compressed file."""
    folder, _, name = file.rpartition("/")
    try:
        return parse(Storage(folder).read(name), file)
    except MissingError as error:
        raise ConfigError(f"{file}: there is no such file") from error


def _check_model(file: str, url: str, header: Header, model: Model) -> None:
    checksum = weights_checksum(model)
    if checksum != header.model:
        raise ConfigError(
            f"{file}: was compressed with the {header.weights} weights {header.model}; those of {url} are {checksum}: "
            "another model, or it has trained further"
        )
    if header.spec != tuple(model.spec[:4]):
        raise ConfigError(f"{file}: has images of {header.spec}; the model's are {tuple(model.spec[:4])}")
    names = [name for name, _ in header.conditions]
    if unknown := set(names) - set(model.conditions):
        raise ConfigError(f"{file}: has conditions that the model does not take: {', '.join(sorted(unknown))}")


def _write(out: str, images: Tensor, condition: Condition, model: Model) -> None:
    """Shards of PNG files with labels, where these are among the conditions; and the index."""
    label = (condition or {}).get("label")
    labels = label.tolist() if isinstance(label, Tensor) and bool((label >= 0).all()) else None

    def examples(first: int) -> Iterator[tuple[str, Example]]:
        for i in range(first, min(first + SHARD, len(images))):
            yield f"{i:08d}", Example(images[i].permute(1, 2, 0).numpy(), labels[i] if labels else None)

    folder = Storage(out)
    for first in range(0, len(images), SHARD):
        with tempfile.TemporaryDirectory() as scratch:
            write_tar(Path(scratch) / "shard.tar", examples(first))
            folder.write(f"{first // SHARD:06d}.tar", Path(scratch) / "shard.tar")
    index_shards(out, join(out, "index"), IndexOptions(model.spec.levels, model.class_names if labels else None))


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("decompress", __doc__)
    parser.add_argument("run", help="URL of the run folder or export whose model compressed the file")
    parser.add_argument("file", help="file, path or URL")
    parser.add_argument("--out", required=True, help="folder of the shards, path or URL")
    parser.add_argument(
        "--anyway", action="store_true", help="try also where versions or device differ from the file's"
    )
    return parser


if __name__ == "__main__":
    run(main)
