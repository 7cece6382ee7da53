"""Run an encoder over a set and write what it makes of each sample: python -m jobs.encode SET --with MODULE:FUNCTION

    python -m jobs.encode data/photos/train --with my_encoder:clip --option model=ViT-B-32 --out data/photos-clip/train
    python -m jobs.encode data/photos/train --with latents:runs/vae --out data/photos-latents/train
    python -m jobs.encode data/photos/train --with text:encoders/t5-base --out data/photos-t5/train
    python -m jobs.encode data/photos/train --with bound:runs/photos --out data/photos-bound/train

Shards are encoded by the GPUs, else the cores, of this machine, or of a Ray cluster if submitted to one (`ray job
submit`). An interrupted job is continued by the same command.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from functools import partial

from cluster.storage.storage import absolute, join
from datasets.encoding.encode import Encoded, encode_set
from datasets.encoding.encoder import EncoderName, SetName, hash_of, open_encoder
from datasets.encoding.write import EncodeJob
from datasets.npy import FLOAT_TYPES
from jobs.cli import check_at_least_one, command_parser, progress_bar, run
from jobs.errors import ConfigError
from jobs.ray.tasks import each

READY = {
    "latents": ("jobs.encoders.latents:Latents", "run"),
    "text": ("jobs.encoders.text:TextEncoder", "path"),
    "bound": ("jobs.encoders.bound:ImageBounds", "run"),
}
"""Encoders by name: what makes them, and the option that follows the colon."""
_SHOWN = 20  # samples that were left out


def main(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    check_at_least_one(options, "batch")
    sys.path.insert(0, os.getcwd())  # modules of encoders are looked for here, also by other processes
    name = encoder_name(options.encoder, options.option)
    shards, out = absolute(options.set), absolute(options.out)
    location = absolute(options.index) if options.index else ""
    if out == shards or out.startswith(f"{shards}/"):
        raise ConfigError(f"--out {out}: is the set itself, or in it; give another folder")
    given = SetName(shards, location, tuple(map(absolute, options.columns)))
    encoder, index = open_encoder(name, given)
    digest = hash_of(name, encoder)
    job = EncodeJob(given, out, name, digest, options.batch, options.dtype, options.on_bad == "skip")
    spread = partial(each, processes=options.processes, gpu=True)
    with progress_bar(index.images, "samples") as bar:
        done = encode_set(job, spread, bar.update)
    _print(done, job)
    return 0


def encoder_name(text: str, options: Iterable[str]) -> EncoderName:
    """The encoder that --with and --option name. Raises ConfigError."""
    kind, _, rest = text.partition(":")
    given: dict[str, str] = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals or not key:
            raise ConfigError(f"--option {option}: not NAME=VALUE")
        given[key] = value
    if kind in READY:
        if not rest:
            raise ConfigError(f"--with {text}: {kind}:URL")
        text, first = READY[kind]
        given[first] = absolute(rest) if kind != "text" or os.path.isdir(rest) else rest
    return EncoderName(text, tuple(sorted(given.items())))


def _print(done: Encoded, job: EncodeJob) -> None:
    for shard, key, reason in done.bad[:_SHOWN]:
        print(f"left out: {join(job.given.shards, shard)}: sample {key!r}: {reason}", file=sys.stderr)
    if len(done.bad) > _SHOWN:
        print(f"and {len(done.bad) - _SHOWN:,} more", file=sys.stderr)
    fields = ", ".join(f"{name} ({kind})" for name, kind in done.fields.items()) or "no fields"
    how = f"{done.encoded} of them now, the others were complete" if done.encoded < done.shards else "all now"
    left_out = f", {len(done.bad):,} left out" if done.bad else ""
    print(
        f"encoded {done.samples:,} samples in {done.shards} shards ({how}){left_out}: {fields}, "
        f"{done.bytes / 1e6:.1f} MB at {job.out}, encoder {job.hash[:8]}"
    )


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("encode", __doc__)
    parser.add_argument(
        "set", help="folder of .tar shards with an index, or a pattern such as s3://bucket/a-{000..099}.tar"
    )
    parser.add_argument(
        "--with",
        dest="encoder",
        required=True,
        metavar="MODULE:FUNCTION",
        help="function that makes the encoder; or latents:RUN, text:FOLDER, bound:RUN",
    )
    parser.add_argument("--out", required=True, help="URL of the folder that the results go to")
    parser.add_argument("--index", default="", help="URL of the index of the set (default: <set>/index)")
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="keyword argument of the function; repeat it",
    )
    parser.add_argument("--batch", type=int, default=64, help="samples that the encoder gets at once (default 64)")
    parser.add_argument(
        "--dtype", choices=FLOAT_TYPES, default="float16", help="how floats are stored (default float16)"
    )
    parser.add_argument(
        "--on-bad",
        choices=("stop", "skip"),
        default="stop",
        help="samples that do not decode: stop (default), or leave them out",
    )
    parser.add_argument(
        "--columns",
        action="append",
        default=[],
        metavar="URL",
        help="encoded shards to join, as data.columns; repeat it",
    )
    parser.add_argument("--processes", type=int, help="processes (default: one per GPU, else per core)")
    return parser


if __name__ == "__main__":
    run(main)
