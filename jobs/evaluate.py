"""Evaluate the bound of a run's or an export's model over a whole set, every image once, in one process or many.

python -m jobs.evaluate RUN_URL [--split validation|train|URL] [--samples K] [--bound NAME] [--weights W]
torchrun --nproc-per-node 8 -m jobs.evaluate RUN_URL ...
python -m jobs.evaluate RUN_URL --workers 8 ...            with Ray: on a cluster, or a local one
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, get_args

import torch

from cluster.storage.storage import absolute
from datasets.loading.build import evaluation_batches
from datasets.shards.index import Index
from jobs.cli import command_parser, run
from jobs.config.other_images import check_format, check_labels
from jobs.errors import ConfigError
from jobs.ray.launch import on_ray
from jobs.run.ledger import left_out
from jobs.run.reports import OWN_SPLITS, Subject, file_name, keep, split_name, subject_of, weights_text
from jobs.run.worst import name_of, outlier, worst_images
from trainer.checkpoints.export import Loaded, open_model
from trainer.checkpoints.weights import HELP as WEIGHTS
from trainer.conditions import ConditionUses, given_names, parse_uses
from trainer.distributed.device import ReportPrecision, make_accelerator
from trainer.distributed.ranks import on_rank_zero, rank, world_size
from trainer.models.base import Model, known_conditions
from trainer.tracking.display import say_on_rank_zero
from trainer.training.evaluation import Evaluation, batch_size, evaluate


def main(arguments: Sequence[str]) -> int | None:
    """Evaluate, print the figures and write them to <run>/evaluations/."""
    options = _parser().parse_args(arguments)
    for name in ("samples", "steps", "batch"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name} {value}: at least 1")
    settings = vars(options) | {"run": absolute(options.run), "index": options.index and absolute(options.index)}
    workers = settings.pop("workers")
    if workers:
        on_ray(evaluate_rank, settings, workers)
    else:
        evaluate_rank(settings)
    return 0


def evaluate_rank(settings: dict[str, Any]) -> None:
    """This rank's share of the evaluation; `settings` are the options of `main`."""
    subject, split = subject_of(settings["run"]), settings["split"]
    config = subject.config
    accelerator = make_accelerator("fp32")
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    index = subject.index(split, settings["index"])
    loaded = open_model(subject.folder.url, settings["weights"])
    model = loaded.model.to(accelerator.device)
    check_format(model.spec, config.data, index)
    if given_names(parse_uses(settings["condition"], known_conditions(model))):
        check_labels(model, index)
    warnings = subject.warnings(index) if split != "train" else []
    if settings["steps"]:
        model.set_steps(settings["steps"])
    size = settings["batch"] or batch_size(config.trainer.micro_batch, config.trainer.batch, world_size())
    with evaluation_batches(
        config.data,
        index,
        batch=size,
        ranks=world_size(),
        rank=rank(),
        device=accelerator.device,
        tokenizers=model.tokenizers,
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
    warnings += left_out(config.data, index, result.images) + _never_hidden(model, result.conditions)
    title = model.bounds[settings["bound"]].title.format(draws=settings["samples"])
    on_rank_zero(lambda: _report(settings, subject, index, title, result, loaded, warnings))


def _report(
    settings: dict[str, Any],
    subject: Subject,
    index: Index,
    title: str,
    result: Evaluation,
    loaded: Loaded,
    warnings: list[str],
) -> None:
    """Write the report, then print it: the reader of a pipe may leave before the end."""
    split = settings["split"] if settings["split"] in OWN_SPLITS else absolute(settings["split"])
    report = {"split": split, "set": index.fingerprint}
    report |= {name: settings[name] for name in ("bound", "samples", "steps", "seed", "precision")}
    report |= {"estimate": title, "weights": loaded.weights, "images_seen": loaded.images}
    report |= {"conditions": result.conditions, "binarisation": index.meta.binarised or None}
    report |= {"levels": index.levels, "images": result.images}
    report |= {"figures": result.row("evaluation"), "worst": worst_images(index, result)}
    name = file_name(
        split_name(settings["split"], index),
        *(settings["bound"], settings["samples"], settings["steps"] and f"{settings['steps']}steps"),
        *(f"{name}-{use}" for name, use in result.conditions.items() if use != "given"),
        *(loaded.weights, loaded.images, settings["seed"] and f"seed{settings['seed']}"),
        settings["precision"] != "fp32" and settings["precision"],
    )
    written = keep(subject, name, report)
    lines = [f"warning: {warning}" for warning in warnings]
    for line in [*lines, as_text(title, report, result, loaded), *written]:
        say_on_rank_zero(line)


def _never_hidden(model: Model, uses: ConditionUses) -> list[str]:
    """A warning if a condition was left out that the model was never trained without."""
    hides = model.hidden_in_training
    names = [name for name, use in uses.items() if use == "none" and not hides[name]]
    return [f"training never hid {' and '.join(names)}: the model has not learned to do without"] if names else []


def as_text(title: str, report: dict[str, Any], result: Evaluation, loaded: Loaded) -> str:
    """The report for a screen: what was measured, then the terms of the bound in nats an image."""
    binarised = f", {report['binarisation']} binarisation" if report["binarisation"] else ""
    lines = [
        f"{title}: {result}",
        f"{report['images']:,} images of {report['split']}{binarised}, {weights_text(loaded)}",
    ]
    if result.rates:
        lines.append(f"  distortion {result.distortion:10.4f} nats")
        lines += [f"  rate {name:<5} {rate:10.4f} nats" for name, rate in result.rates.items()]
    if report["worst"]:
        lines.append(f"  largest bound {report['worst'][0]['nats']:.4f} nats: {name_of(report['worst'][0])}")
    if line := outlier(result, report["worst"]):
        lines.append(f"  {line}")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("evaluate", __doc__)
    parser.add_argument("run", help="URL of a run folder, or of an export")
    parser.add_argument("--split", default="validation", help="validation or train of the run, or a URL of shards")
    parser.add_argument("--index", default="", help="with --split URL: URL of their index (default: <split>/index)")
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
