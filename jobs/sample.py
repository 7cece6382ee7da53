"""Sample from a run: a grid, single images, or WebDataset shards that another run can train on.

    python -m jobs.sample RUN_URL --count 64 --out URL [--format grid|images|shards]

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
from tqdm import tqdm

from cluster.storage.storage import Storage, absolute, join
from jobs.cli import command_parser, run
from jobs.ray.tasks import each
from jobs.run.reports import weights_text
from jobs.sampling.options import add_options, check_at_least_one, given_options, labels_of
from jobs.sampling.plan import (
    SamplingPlan,
    assemble_grid,
    condition_of,
    make_unit,
    model_here,
    opened,
    weights_checksum,
)
from trainer.distributed.device import report_precision
from trainer.models import Model
from trainer.noise import Noise
from trainer.samplers.interpolation import Between
from trainer.tracking.animation import gif
from trainer.tracking.pictures import grid

COLUMNS = 12  # images in a row of an interpolation or trajectory


def main(arguments: Sequence[str]) -> int:
    """Make the samples that are missing, and print where they are."""
    options = _parser().parse_args(arguments)
    options.run, options.out = absolute(options.run), absolute(options.out)
    loaded = opened(options.run, options.weights)
    model = loaded.model
    plan = _plan(options, model)
    if options.interpolate:
        print(f"interpolated: {_interpolate(plan)}")
        return 0
    if options.trajectory:
        print(f"trajectories of {plan.count} samples: {_trajectory(plan, options.trajectory)}")
        return 0
    todo = plan.left()
    sizes = {first: min(plan.unit, plan.count - first) for first in plan.units()}
    done = plan.count - sum(sizes[first] for first in todo)
    with tqdm(total=plan.count, initial=done, unit=" images", disable=not sys.stderr.isatty()) as bar:
        for made in each(partial(make_unit, plan), todo, options.processes, gpu=True):
            bar.update(made)
    where = assemble_grid(plan, model) if plan.format == "grid" else plan.out
    how = f"{weights_text(loaded)}, {plan.precision}"
    print(f"{plan.count:,} samples, {how} ({done:,} already existed): {where}")
    if plan.format == "shards":
        print(f"to train on them: python -m jobs.index {where} --levels {model.spec.levels}")
    return 0


def _plan(options: argparse.Namespace, model: Model) -> SamplingPlan:
    check_at_least_one(options, "count", "batch", "shard_images")
    unit = options.shard_images if options.format == "shards" else options.batch
    return SamplingPlan(
        run=options.run,
        weights=options.weights,
        fingerprint=weights_checksum(model),
        out=options.out,
        format=options.format,
        count=options.count,
        batch=options.batch,
        unit=unit,
        seed=options.seed,
        temperature=options.temperature,
        precision=options.precision,
        labels=labels_of(options, model),
        settings=given_options(options, model),
    )


@torch.no_grad()
def _interpolate(plan: SamplingPlan) -> str:
    """Draw `count` rows of pictures from one sample to another; the URL of the PNG."""
    model, device = model_here(plan)
    share = torch.linspace(0, 1, COLUMNS, device=device)
    rows = []
    for row in range(plan.count):
        start, end = (torch.full((COLUMNS,), 2 * row + end, device=device) for end in (0, 1))
        noise = Between(plan.seed, "sample", start, ends=end, share=share)
        condition = condition_of(plan, start // 2, device)
        with report_precision(plan.precision, device):
            rows.append(model.sample(noise, condition, plan.temperature, **plan.settings))
    Storage(plan.out).write("interpolation.png", grid(torch.cat(rows), model.spec, COLUMNS))
    return join(plan.out, "interpolation.png")


@torch.no_grad()
def _trajectory(plan: SamplingPlan, kind: str) -> str:
    """Draw the model's estimates on the way to `count` samples, side by side or animated; the URL of the picture."""
    model, device = model_here(plan)
    noise = Noise(plan.seed, "sample", torch.arange(plan.count, device=device))
    condition = condition_of(plan, noise.positions, device)
    with report_precision(plan.precision, device):
        frames = list(model.trajectory(noise, condition, plan.temperature, **plan.settings))
    storage = Storage(plan.out)
    if kind == "gif":
        storage.write("trajectory.gif", gif([grid(frame, model.spec) for frame in frames]))
        return join(plan.out, "trajectory.gif")
    columns = min(COLUMNS, len(frames))
    kept = [frames[round(i * (len(frames) - 1) / max(columns - 1, 1))] for i in range(columns)]
    storage.write("trajectory.png", grid(torch.stack(kept, 1).flatten(0, 1), model.spec, columns))
    return join(plan.out, "trajectory.png")


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("sample", __doc__)
    parser.add_argument("run", help="URL of a run or of an exported model")
    parser.add_argument("--out", required=True, help="folder, path or URL")
    parser.add_argument("--count", type=int, default=64, help="images, or rows of --interpolate and --trajectory")
    parser.add_argument("--format", choices=("grid", "images", "shards"), default="grid", help="default: grid, one PNG")
    add_options(parser)
    parser.add_argument("--interpolate", action="store_true", help="draw pictures between two samples, --count rows")
    parser.add_argument(
        "--trajectory", choices=("strip", "gif"), help="draw the estimates on the way to --count samples"
    )
    parser.add_argument("--shard-images", type=int, default=1024, help="images per shard")
    return parser


if __name__ == "__main__":
    run(main)
