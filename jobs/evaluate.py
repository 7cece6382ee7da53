"""The bound of a run's model over a whole set, every image once, by one process or many.

python -m jobs.evaluate RUN_URL [--split validation|train|URL] [--samples K] [--bound elbo|iw|flow] [--weights W]
torchrun --nproc-per-node 8 -m jobs.evaluate RUN_URL ...
python -m jobs.evaluate RUN_URL --workers 8 ...            by Ray: a cluster's, or one of this machine's own
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from typing import Any, get_args

import torch

from cluster.storage.storage import Storage, absolute, join
from datasets.loading.loader import evaluation_batches
from datasets.shards.index import Index
from jobs.cli import run
from jobs.config.schema import RunConfig, config_of
from jobs.errors import ConfigError
from jobs.ray.launch import on_ray
from jobs.run.ledger import check_left_out
from jobs.run.training import EVALUATION_BATCH
from trainer.checkpoints.export import load
from trainer.checkpoints.weights import HELP as WEIGHTS
from trainer.checkpoints.weights import in_words
from trainer.distributed.device import make_accelerator
from trainer.distributed.ranks import on_rank_zero, rank, world_size
from trainer.models import Model
from trainer.models.diffusion import DiffusionModel
from trainer.tracking.display import say_on_rank_zero
from trainer.tracking.trackers import WandbTracker
from trainer.training.evaluation import Bound, Evaluation, evaluate


def main(arguments: Sequence[str]) -> int | None:
    """Evaluate, print the figures and write them to <run>/evaluations/."""
    parser = argparse.ArgumentParser(prog="python -m jobs.evaluate", description="The bound over a whole set.")
    parser.add_argument("run", help="URL of the run folder")
    parser.add_argument("--split", default="validation", help="validation or train of the run, or a URL of shards")
    parser.add_argument("--samples", type=int, default=1, metavar="K", help="draws of the latents of each image")
    parser.add_argument(
        "--bound",
        choices=get_args(Bound),
        default="elbo",
        help="iw: importance-weighted by K draws; flow: the probability flow's likelihood, no bound",
    )
    parser.add_argument(
        "--steps", type=int, help="of a diffusion: its bound in T steps, or those of iw's chain or flow"
    )
    parser.add_argument("--weights", default="ema", help=WEIGHTS)
    parser.add_argument("--seed", type=int, default=0, help="of the latents' noise")
    parser.add_argument("--workers", type=int, default=0, help="ranks, by Ray (default: this process, or torchrun's)")
    options = parser.parse_args(arguments)
    if options.samples < 1:
        raise ConfigError(f"--samples {options.samples}: at least one")
    if options.steps is not None and options.steps < 1:
        raise ConfigError(f"--steps {options.steps}: at least one")
    settings = vars(options) | {"run": absolute(options.run)}
    workers = settings.pop("workers")
    if workers:
        on_ray(evaluate_rank, settings, workers)
    else:
        evaluate_rank(settings)
    return 0


def evaluate_rank(settings: dict[str, Any]) -> None:
    """This rank's part of the evaluation that `main`'s options describe."""
    run_folder = Storage(settings["run"])
    config = config_of(run_folder)
    accelerator = make_accelerator(config.trainer.precision)
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    split = settings["split"]
    index = index_of(config, split)
    model = load(run_folder.url, settings["weights"]).to(accelerator.device)
    if settings["steps"]:
        in_steps(model, settings["steps"])
    with evaluation_batches(
        config.data, index, batch=EVALUATION_BATCH, ranks=world_size(), rank=rank(), device=accelerator.device
    ) as batches:
        result = evaluate(model, batches, accelerator, settings["seed"], settings["samples"], settings["bound"])
    facts = {name: settings[name] for name in ("split", "bound", "samples", "steps", "weights", "seed")}
    report = facts | {"binarisation": index.meta.binarised or None, "levels": index.levels, "images": result.images}
    check_left_out(config.data, index, result.images)
    report["figures"] = result.row("evaluation")
    say_on_rank_zero(as_text(report, result))
    steps = settings["steps"] and f"{settings['steps']}steps"
    name = file_name(known(split), *(settings[key] for key in ("bound", "samples")), steps, settings["weights"])
    on_rank_zero(lambda: keep(run_folder, config, name, report))


def index_of(config: RunConfig, split: str) -> Index:
    """The images of `validation` or `train` of a run, or at a URL. Raises ConfigError if the run has none."""
    shards = {"validation": config.data.validation, "train": config.data.shards}.get(split, split)
    if not shards:
        raise ConfigError(f"{config.run}: the run has no validation set; name shards by --split URL")
    return Index.open(shards)


def known(split: str) -> str:
    """A split as a word: validation, train, or other."""
    return split if split in ("validation", "train") else "other"


def in_steps(model: Model, steps: int) -> None:
    """Take a diffusion at T = `steps`, whatever it was trained with. Raises ConfigError for other models."""
    if not isinstance(model, DiffusionModel):
        raise ConfigError(f"--steps: is for diffusions, not for a {type(model).__name__}")
    model.diffuser.steps = steps


def keep(run_folder: Storage, config: RunConfig, name: str, report: dict[str, Any]) -> None:
    """Write a report to the run folder, and its figures to the summary of the W&B run, under a name."""
    run_folder.write(f"evaluations/{name}.json", json.dumps(report, indent=1).encode())
    say_on_rank_zero(f"written to {join(run_folder.url, 'evaluations', name)}.json")
    if config.tracking.mode != "off":
        tracker = WandbTracker(run_folder, config.tracking, config.model_dump(mode="json"), say_on_rank_zero)
        tracker.summarise({f"{key}/{name}": value for key, value in report["figures"].items()})
        tracker.finish()


def file_name(*parts: object) -> str:
    """Of a report about these."""
    return "-".join(re.sub(r"[^\w.]+", "-", str(part)).strip("-") for part in parts if part)


def as_text(report: dict[str, Any], result: Evaluation) -> str:
    """The report for a screen: what was measured, then the figures in nats an image."""
    bound = {
        "elbo": "-ELBO",
        "iw": f"importance-weighted bound of {report['samples']} draws",
        "flow": "probability-flow likelihood (an estimate, no bound)",
    }[report["bound"]]
    bound += f", in {report['steps']} steps" if report["steps"] else ""
    draws = "" if report["bound"] == "iw" else f", mean of {report['samples']} draws"
    binarised = f", {report['binarisation']} binarisation" if report["binarisation"] else ""
    lines = [
        f"{bound}{draws}: {result}",
        f"{report['images']:,} images of {report['split']}{binarised}, {in_words(report['weights'])} weights",
    ]
    if result.rates:
        lines.append(f"  distortion {result.distortion:10.4f} nats")
        lines += [f"  rate {name:<5} {rate:10.4f} nats" for name, rate in result.rates.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
