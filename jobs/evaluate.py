"""Evaluate the bound of a run's model over a whole set, every image once, in one process or many.

python -m jobs.evaluate RUN_URL [--split validation|train|URL] [--samples K] [--bound NAME] [--weights W]
torchrun --nproc-per-node 8 -m jobs.evaluate RUN_URL ...
python -m jobs.evaluate RUN_URL --workers 8 ...            with Ray: on a cluster, or a local one
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, get_args

import torch

from cluster.storage.storage import Storage, absolute
from datasets.loading.build import evaluation_batches
from jobs.cli import command_parser, run
from jobs.config.loading import config_of
from jobs.config.other_images import check_format, check_labels
from jobs.errors import ConfigError
from jobs.ray.launch import on_ray
from jobs.run.ledger import check_left_out
from jobs.run.reports import file_name, index_of, keep, split_name, warn_of, weights_text
from trainer.checkpoints.export import Loaded, open_model
from trainer.checkpoints.weights import HELP as WEIGHTS
from trainer.conditions import given_names, parse_uses
from trainer.distributed.device import ReportPrecision, make_accelerator
from trainer.distributed.ranks import on_rank_zero, rank, world_size
from trainer.models.base import known_conditions
from trainer.tracking.display import say_on_rank_zero
from trainer.training.evaluation import Evaluation, batch_size, evaluate


def main(arguments: Sequence[str]) -> int | None:
    """Evaluate, print the figures and write them to <run>/evaluations/."""
    options = _parser().parse_args(arguments)
    for name in ("samples", "steps", "batch"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name} {value}: at least 1")
    settings = vars(options) | {"run": absolute(options.run)}
    workers = settings.pop("workers")
    if workers:
        on_ray(evaluate_rank, settings, workers)
    else:
        evaluate_rank(settings)
    return 0


def evaluate_rank(settings: dict[str, Any]) -> None:
    """This rank's share of the evaluation; `settings` are the options of `main`."""
    run_folder, split = Storage(settings["run"]), settings["split"]
    config = config_of(run_folder)
    accelerator = make_accelerator("fp32")
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    index = index_of(config, split)
    loaded = open_model(run_folder.url, settings["weights"])
    model = loaded.model.to(accelerator.device)
    check_format(model.spec, config.data, index)
    if given_names(parse_uses(settings["condition"], known_conditions(model))):
        check_labels(model, index)
    if split != "train":
        warn_of(config, index)
    hides = model.hidden_in_training
    if settings["steps"]:
        model.set_steps(settings["steps"])
    size = settings["batch"] or batch_size(config.trainer.micro_batch, config.trainer.batch, world_size())
    with evaluation_batches(
        config.data, index, batch=size, ranks=world_size(), rank=rank(), device=accelerator.device
    ) as batches:
        result = evaluate(
            model,
            batches,
            settings["seed"],
            settings["samples"],
            settings["bound"],
            settings["precision"],
            settings["condition"],
        )
    check_left_out(config.data, index, result.images)
    report = {name: settings[name] for name in ("split", "bound", "samples", "steps", "seed", "precision")}
    report |= {"weights": loaded.weights, "images_seen": loaded.images, "conditions": result.conditions}
    report |= {"binarisation": index.meta.binarised or None, "levels": index.levels, "images": result.images}
    report["figures"] = result.row("evaluation")
    title = model.bounds[settings["bound"]].title.format(draws=settings["samples"])
    say_on_rank_zero(as_text(title, report, result, loaded))
    if never := [name for name, use in result.conditions.items() if use == "none" and not hides[name]]:
        say_on_rank_zero(f"warning: training never hid {' and '.join(never)}: the model has not learned to do without")
    name = file_name(
        split_name(split),
        *(settings["bound"], settings["samples"], settings["steps"] and f"{settings['steps']}steps"),
        *(f"{name}-{use}" for name, use in result.conditions.items() if use != "given"),
        *(loaded.weights, settings["precision"] != "fp32" and settings["precision"]),
    )
    on_rank_zero(lambda: keep(run_folder, config, name, report))


def as_text(title: str, report: dict[str, Any], result: Evaluation, loaded: Loaded) -> str:
    """The report for a screen: what was measured, then the terms of the bound in nats an image."""
    steps = f", {report['steps']} steps" if report["steps"] else ""
    binarised = f", {report['binarisation']} binarisation" if report["binarisation"] else ""
    lines = [
        f"{title}{steps}: {result}",
        f"{report['images']:,} images of {report['split']}{binarised}, {weights_text(loaded)}",
    ]
    if result.rates:
        lines.append(f"  distortion {result.distortion:10.4f} nats")
        lines += [f"  rate {name:<5} {rate:10.4f} nats" for name, rate in result.rates.items()]
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("evaluate", __doc__)
    parser.add_argument("run", help="URL of the run folder")
    parser.add_argument("--split", default="validation", help="validation or train of the run, or a URL of shards")
    parser.add_argument("--samples", type=int, default=1, metavar="K", help="draws of the latents of each image")
    parser.add_argument(
        "--bound",
        default="elbo",
        help="elbo (default), iw (importance-weighted by K draws), or another bound of the model, such as a "
        "diffusion's flow (the likelihood of its probability flow, an estimate)",
    )
    parser.add_argument("--steps", type=int, help="number of latents T, for models that can choose it: diffusions")
    parser.add_argument("--weights", default="ema", help=WEIGHTS)
    parser.add_argument(
        "--condition",
        default="given",
        metavar="given|none|NAME=...",
        help="given (default): the model is given its conditions, such as the label; none: they are left out; or one "
        "by one, label=none,caption=given",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the latents' noise")
    parser.add_argument(
        "--precision",
        choices=get_args(ReportPrecision),
        default="fp32",
        help="fp32 (default): float32 without TF32, whatever training used; bf16: autocast",
    )
    parser.add_argument(
        "--batch", type=int, help="images of a rank at once (default: trainer.micro_batch); changes no figure"
    )
    parser.add_argument("--workers", type=int, default=0, help="ranks, with Ray (default: this process, or torchrun's)")
    return parser


if __name__ == "__main__":
    run(main)
