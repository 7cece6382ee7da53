"""Sample from a run: a grid, single images, or WebDataset shards that another run can train on.

    python -m jobs.sample RUN_URL --count 64 --out URL [--format grid|images|shards]

The same seed gives the same images whatever the number of workers; the same command again makes what is missing.
On a Ray cluster (RAY_ADDRESS, as under `ray job submit`) the work is spread over it, else over this machine's cores.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial

import torch
from tqdm import tqdm

from cluster.storage.storage import Storage, absolute, join
from jobs.cli import run
from jobs.errors import ConfigError
from jobs.ray.tasks import each
from jobs.sampling.options import add_options, at_least_one, labels_of, settings_of
from jobs.sampling.plan import Plan, assemble_grid, condition_of, fingerprint, make_unit, opened
from trainer.checkpoints.weights import in_words
from trainer.models import Model
from trainer.models.diffusion import DiffusionModel
from trainer.noise import Noise
from trainer.samplers.interpolation import Between
from trainer.tracking.animation import gif
from trainer.tracking.pictures import grid

COLUMNS = 12  # of a strip


def main(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    options.run, options.out = absolute(options.run), absolute(options.out)
    model, _ = opened(options.run, options.weights)
    plan = _plan(options, model)
    if options.interpolate:
        print(f"interpolated: {_interpolate(plan, model)}")
        return 0
    if options.trajectory:
        print(f"drew the way to {plan.count} samples: {_trajectory(plan, model, options.trajectory)}")
        return 0
    todo = plan.left()
    sizes = {first: min(plan.unit, plan.count - first) for first in plan.units()}
    done = plan.count - sum(sizes[first] for first in todo)
    with tqdm(total=plan.count, initial=done, unit=" images", disable=not sys.stderr.isatty()) as bar:
        for made in each(partial(make_unit, plan), todo, options.processes, gpu=True):
            bar.update(made)
    where = assemble_grid(plan, model) if plan.format == "grid" else plan.out
    print(f"{plan.count:,} samples, {in_words(plan.weights)} weights ({done:,} of them were there): {where}")
    if plan.format == "shards":
        print(f"to train on them: python -m jobs.index {where} --levels {model.spec.levels}")
    return 0


def _plan(options: argparse.Namespace, model: Model) -> Plan:
    at_least_one(options, "count", "batch", "shard_images")
    if options.trajectory and not isinstance(model, DiffusionModel):
        raise ConfigError(f"--trajectory: is for diffusions; {options.run} is a {type(model).__name__}")
    unit = options.shard_images if options.format == "shards" else options.batch
    return Plan(
        run=options.run,
        weights=options.weights,
        fingerprint=fingerprint(model),
        out=options.out,
        format=options.format,
        count=options.count,
        batch=options.batch,
        unit=unit,
        seed=options.seed,
        temperature=options.temperature,
        labels=labels_of(options, model),
        settings=settings_of(options, model),
    )


@torch.no_grad()
def _interpolate(plan: Plan, model: Model) -> str:
    """Rows of pictures from one sample to the next, `count` rows; the URL of the PNG."""
    rows, share = torch.arange(plan.count), torch.linspace(0, 1, COLUMNS)
    starts, ends = (2 * rows + end for end in (0, 1))
    pictures = []
    for start, end in zip(starts, ends, strict=True):
        noise = Between(plan.seed, "sample", start.expand(COLUMNS), ends=end.expand(COLUMNS), share=share)
        condition = condition_of(plan, start.expand(COLUMNS) // 2, torch.device("cpu"))
        pictures.append(model.cpu().sample(noise, condition, plan.temperature, **plan.settings))
    Storage(plan.out).write("interpolation.png", grid(torch.cat(pictures), model.spec, COLUMNS))
    return join(plan.out, "interpolation.png")


@torch.no_grad()
def _trajectory(plan: Plan, model: Model, kind: str) -> str:
    """The denoiser's estimates on the way to `count` samples, as a strip or moving; the URL of the picture."""
    assert isinstance(model, DiffusionModel)
    noise = Noise(plan.seed, "sample", torch.arange(plan.count))
    condition = condition_of(plan, noise.positions, torch.device("cpu"))
    frames = list(model.cpu().trajectory(noise, condition, plan.temperature, **plan.settings))
    storage = Storage(plan.out)
    if kind == "gif":
        storage.write("trajectory.gif", gif([grid(frame, model.spec) for frame in frames]))
        return join(plan.out, "trajectory.gif")
    columns = min(COLUMNS, len(frames))
    kept = [frames[round(i * (len(frames) - 1) / max(columns - 1, 1))] for i in range(columns)]
    storage.write("trajectory.png", grid(torch.stack(kept, 1).flatten(0, 1), model.spec, columns))
    return join(plan.out, "trajectory.png")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m jobs.sample", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", help="URL of a run or of an exported model")
    parser.add_argument("--out", required=True, help="folder, path or URL")
    parser.add_argument("--count", type=int, default=64, help="images; of --interpolate and --trajectory, rows")
    parser.add_argument("--format", choices=("grid", "images", "shards"), default="grid", help="default: grid, one PNG")
    add_options(parser)
    parser.add_argument("--interpolate", action="store_true", help="draw ways from one sample to another")
    parser.add_argument("--trajectory", choices=("strip", "gif"), help="draw the denoising of --count samples")
    parser.add_argument("--shard-images", type=int, default=1024, help="images a shard")
    return parser


if __name__ == "__main__":
    run(main)
