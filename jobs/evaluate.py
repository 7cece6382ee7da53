"""Evaluate the bound of a run's or an export's model over a whole set, every image once, in one process or many.

python -m jobs.evaluate RUN_URL [--split validation|train|URL] [--samples K] [--bound NAME] [--weights W]
python -m jobs.evaluate RUN_URL --against OTHER | --against-condition none | --by-noise-level | --retrieval K
python -m jobs.evaluate RUN_URL --rate-distortion
torchrun --nproc-per-node 8 -m jobs.evaluate RUN_URL ...
python -m jobs.evaluate RUN_URL --workers 8 ...            with Ray: on a cluster, or a local one
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any, get_args

from cluster.storage.storage import absolute
from jobs.cli import check_at_least_one, command_parser, run
from jobs.errors import ConfigError
from jobs.evaluating.against import OPTIONS as AGAINST
from jobs.evaluating.against import evaluate_against
from jobs.evaluating.by_noise_level import BINS, evaluate_by_noise_level
from jobs.evaluating.opened import Opened, opened
from jobs.evaluating.rate_distortion import evaluate_rate_distortion
from jobs.evaluating.retrieval import evaluate_retrieval
from jobs.ray.launch import on_ray
from jobs.run.reports import keep, weights_text
from jobs.run.worst import name_of, outlier, worst_images
from trainer.checkpoints.export import Loaded
from trainer.checkpoints.weights import HELP as WEIGHTS
from trainer.distributed.device import ReportPrecision
from trainer.distributed.ranks import on_rank_zero
from trainer.tracking.display import say_on_rank_zero
from trainer.training.evaluation import Evaluation, evaluate


def main(arguments: Sequence[str]) -> int | None:
    """Evaluate, print the figures and write them to <run>/evaluations/."""
    options = _parser().parse_args(arguments)
    check_at_least_one(options, "samples", "steps", "batch", "images")
    settings = vars(options) | {"run": absolute(options.run), "index": options.index and absolute(options.index)}
    if settings["against"] is not None:
        settings["against"] = absolute(settings["against"])
    task = _task(settings)
    workers = settings.pop("workers")
    if workers:
        on_ray(task, settings, workers)
    else:
        task(settings)
    return 0


def _task(settings: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    """What the options ask for. Raises ConfigError if it is more than one thing."""
    asked: dict[str, Callable[[dict[str, Any]], None]] = {}
    if given := [name for name in AGAINST if settings[name] is not None]:
        asked[f"--{given[0].replace('_', '-')}"] = evaluate_against
    if settings["by_noise_level"] is not None:
        asked["--by-noise-level"] = evaluate_by_noise_level
    if settings["retrieval"] is not None:
        asked["--retrieval"] = evaluate_retrieval
    if settings["rate_distortion"]:
        asked["--rate-distortion"] = evaluate_rate_distortion
    if len(asked) > 1:
        raise ConfigError(f"{' and '.join(asked)}: one at a time")
    return next(iter(asked.values()), evaluate_rank)


def evaluate_rank(settings: dict[str, Any]) -> None:
    """This rank's share of the evaluation; `settings` are the options of `main`."""
    own = opened(settings)
    partners = own.partners(own.uses)
    with own.batches() as batches:
        result = evaluate(
            own.model,
            batches,
            settings["seed"],
            settings["samples"],
            settings["bound"],
            settings["precision"],
            settings["condition"],
            partners,
        )
    lines = [f"warning: {line}" for line in own.warnings(result.conditions, result.images)]
    lines += own.same_conditions(partners)
    on_rank_zero(lambda: _report(own, result, lines))


def _report(own: Opened, result: Evaluation, lines: list[str]) -> None:
    """Write the report, then print it: the reader of a pipe may leave before the end."""
    report = own.facts(result.images)
    report |= {"figures": result.row("evaluation"), "worst": worst_images(own.index, result)}
    written = keep(own.subject, own.name(), report)
    for line in [*lines, as_text(report["estimate"], report, result, own.loaded), *written]:
        say_on_rank_zero(line)


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


def _add_comparisons(parser: argparse.ArgumentParser) -> None:
    """The options of what is compared, image by image and by the same noise."""
    parser.add_argument("--images", type=int, metavar="N", help="evaluate N images only, spread evenly over the set")
    parser.add_argument("--against", metavar="OTHER", help="the difference to another run or export, image by image")
    parser.add_argument("--against-weights", metavar="W", help="the difference to other weights, as --weights")
    parser.add_argument(
        "--against-caption",
        metavar="NAME=MEMBER",
        help="the difference to other captions: caption=json.recaption",
    )
    parser.add_argument(
        "--against-condition",
        metavar="none|shuffled|NAME=...",
        help="the difference to the same model without its conditions, or with those of other images",
    )
    parser.add_argument(
        "--by-noise-level",
        nargs="?",
        const=str(BINS),
        metavar="N|mlperf",
        help=f"a diffusion's part of the bound in N bins of noise levels (default {BINS}), with, without and with "
        "shuffled conditions; mlperf: the loss at eight fixed levels, as MLPerf's FLUX.1 benchmark has it",
    )
    parser.add_argument(
        "--retrieval",
        type=int,
        metavar="K",
        help="how often the bound finds an image's caption among K, and a caption's image among K",
    )
    parser.add_argument(
        "--rate-distortion",
        action="store_true",
        help="how close to the image each level of a hierarchy, or step of a diffusion, comes for the bits so far",
    )


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
        metavar="given|none|shuffled|NAME=...",
        help="given (default): the model is given its conditions, such as the label; none: they are left out; "
        "shuffled: each image is given those of another; or one by one, label=none,caption=shuffled",
    )
    _add_comparisons(parser)
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
