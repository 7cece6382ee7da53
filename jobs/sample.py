"""Sample from a run: a grid, single images, or WebDataset shards that another run can train on.

    python -m jobs.sample RUN_URL --count 64 --out URL [--format grid|images|shards]
    python -m jobs.sample RUN_URL --prompt "a, b" --prompt "c" --out URL [--guidance 3] [--negative "d"]

Of several prompts, and of several labels, image i has number i in turn; the grid has a row for each prompt.
The same seed gives the same images for any number of processes; the same command again makes missing ones only.
The work is spread over a Ray cluster (RAY_ADDRESS, as under `ray job submit`), else over the GPUs of this machine, one
process each, else over its cores.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial

import torch

from cluster.storage.storage import Storage, absolute, join
from jobs.cli import check_at_least_one, command_parser, progress_bar, run
from jobs.errors import ConfigError
from jobs.ray.tasks import each
from jobs.sampling.options import add_options, labels_of, sampling_options
from jobs.sampling.plan import (
    Format,
    SamplingPlan,
    assemble_grid,
    in_words,
    make_unit,
    model_here,
    opened,
    weights_checksum,
)
from jobs.sampling.prompts import add_prompt_options, negative_of, prompts_of
from trainer.distributed.device import report_precision
from trainer.models import Model
from trainer.noise import Noise
from trainer.prompts import Captions
from trainer.samplers.interpolation import Between
from trainer.sampling import encode_conditions
from trainer.tracking.animation import gif
from trainer.tracking.pictures import grid

COUNT, PER_PROMPT = 64, 8  # images if --count is not given
COLUMNS = 12  # images in a row of an interpolation or trajectory
SHOWN = 5  # prompts that are cut


def main(arguments: Sequence[str]) -> int:
    """Make the samples that are missing, and print where they are."""
    options = _parser().parse_args(arguments)
    options.run, options.out = absolute(options.run), absolute(options.out)
    loaded = opened(options.run, options.weights)
    plan = _plan(options, loaded.model)
    if plan.format in ("interpolation", "trajectory"):
        plan.claim()
        caption = in_words(plan, loaded)
        made = _interpolate(plan, caption) if options.interpolate else _trajectory(plan, options.trajectory, caption)
        print(f"{plan.format} of {plan.count:,} {caption}: {made}")
        return 0
    todo = plan.left()
    sizes = {first: min(plan.unit, plan.count - first) for first in plan.units()}
    done = plan.count - sum(sizes[first] for first in todo)
    with progress_bar(plan.count, initial=done) as bar:
        for count in each(partial(make_unit, plan), todo, options.processes, gpu=True):
            bar.update(count)
    where = assemble_grid(plan, loaded) if plan.format == "grid" else plan.out
    print(f"{plan.count:,} {in_words(plan, loaded)} ({done:,} already existed): {where}")
    if plan.format == "shards":
        print(f"to train on them: python -m jobs.index {where} --levels {loaded.model.spec.levels}")
    return 0


def _plan(options: argparse.Namespace, model: Model) -> SamplingPlan:
    prompts, negative = prompts_of(options, model), negative_of(options, model)
    options.count = options.count if options.count is not None else PER_PROMPT if prompts else COUNT
    check_at_least_one(options, "count", "batch", "shard_images")
    unit = options.shard_images if options.format == "shards" else options.batch
    format: Format = "interpolation" if options.interpolate else "trajectory" if options.trajectory else options.format
    settings = sampling_options(options, model, bool(prompts), bool(negative))
    if format in ("interpolation", "trajectory"):
        settings |= {name: value for name, value in model.picture_options.items() if getattr(options, name) is None}
    labels = labels_of(options, model)
    _say_cut_prompts(model, prompts, negative)
    return SamplingPlan(
        run=options.run,
        weights=options.weights,
        fingerprint=weights_checksum(model),
        out=options.out,
        format=format,
        count=options.count * max(1, len(prompts)),
        batch=options.batch,
        unit=unit,
        seed=options.seed,
        temperature=options.temperature,
        precision=options.precision,
        labels=labels,
        prompts=prompts,
        negative=negative,
        settings=settings,
    )


def _say_cut_prompts(model: Model, prompts: Sequence[Captions], negative: Captions) -> None:
    """Print which prompts have more tokens than the model reads. Raises ConfigError if they cannot be tokenized."""
    try:
        cut = encode_conditions(model, (), prompts, [negative] if negative else [])[1]
    except ValueError as error:
        raise ConfigError(f"--{error}") from error
    for line in cut[:SHOWN]:
        print(f"warning: {line}", file=sys.stderr)
    if len(cut) > SHOWN:
        print(f"warning: {len(cut) - SHOWN:,} more prompts are cut", file=sys.stderr)


@torch.no_grad()
def _interpolate(plan: SamplingPlan, caption: str) -> str:
    """Draw `count` rows of pictures from one sample to another; the URL of the PNG."""
    model, device = model_here(plan)
    share = torch.linspace(0, 1, COLUMNS, device=device)
    rows = []
    for row in range(plan.count):
        start, end = (torch.full((COLUMNS,), 2 * row + end, device=device) for end in (0, 1))
        noise = Between(plan.seed, "sample", start, ends=end, share=share)
        given = plan.conditions.at(start // 2)
        with report_precision(plan.precision, device):
            rows.append(model.sample(noise, temperature=plan.temperature, **given, **plan.settings))
    Storage(plan.out).write("interpolation.png", grid(torch.cat(rows), model.spec, COLUMNS, caption))
    return join(plan.out, "interpolation.png")


@torch.no_grad()
def _trajectory(plan: SamplingPlan, kind: str, caption: str) -> str:
    """Draw the model's estimates on the way to `count` samples, side by side or animated; the URL of the picture."""
    model, device = model_here(plan)
    noise = Noise(plan.seed, "sample", torch.arange(plan.count, device=device))
    given = plan.conditions.at(noise.positions)
    with report_precision(plan.precision, device):
        frames = list(model.trajectory(noise, temperature=plan.temperature, **given, **plan.settings))
    storage = Storage(plan.out)
    if kind == "gif":
        storage.write("trajectory.gif", gif([grid(frame, model.spec) for frame in frames]))
        return join(plan.out, "trajectory.gif")
    columns = min(COLUMNS, len(frames))
    kept = [frames[round(i * (len(frames) - 1) / max(columns - 1, 1))] for i in range(columns)]
    storage.write("trajectory.png", grid(torch.stack(kept, 1).flatten(0, 1), model.spec, columns, caption))
    return join(plan.out, "trajectory.png")


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("sample", __doc__)
    parser.add_argument("run", help="URL of a run or of an exported model")
    parser.add_argument("--out", required=True, help="folder, path or URL")
    parser.add_argument(
        "--count",
        type=int,
        help="images, or rows of --interpolate and --trajectory; with prompts, of each "
        f"(default: {COUNT}, with prompts {PER_PROMPT})",
    )
    parser.add_argument("--format", choices=("grid", "images", "shards"), default="grid", help="default: grid, one PNG")
    add_options(parser)
    add_prompt_options(parser)
    parser.add_argument("--interpolate", action="store_true", help="draw pictures between two samples, --count rows")
    parser.add_argument(
        "--trajectory", choices=("strip", "gif"), help="draw the estimates on the way to --count samples"
    )
    parser.add_argument("--shard-images", type=int, default=1024, help="images per shard")
    return parser


if __name__ == "__main__":
    run(main)
