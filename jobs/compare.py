"""Train several models on the same images with the same budget and compare their bounds.

    python -m jobs.compare CONFIG CONFIG ... [--out runs/compare] [key=value ...]

Writes <out>/table.md, table.json and samples.png. The same command resumes a comparison that was stopped.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from cluster.storage.storage import Storage, absolute, join
from datasets.loading.build import evaluation_batches
from jobs.cli import command_parser, run
from jobs.config.loading import load_config
from jobs.config.resolved import ResolvedRun, resolve
from jobs.config.schema import RunConfig
from jobs.errors import ConfigError
from jobs.run.training import train_rank
from jobs.train_local import StopOnSignal
from trainer.checkpoints.export import load
from trainer.checkpoints.journal import read_metrics
from trainer.conditions import given_names, in_words, none_given
from trainer.distributed.device import full_precision, make_accelerator
from trainer.models.base import known_conditions
from trainer.noise import Noise
from trainer.tracking.pictures import captioned_rows
from trainer.training.evaluation import Evaluation, batch_size, evaluate

COLUMNS = 16  # of the picture, which has two rows of samples per model
SAME = ("shards", "mixture", "validation", "transform")  # of the data section


class ComparedRun(NamedTuple):
    """A trained model: one row of the table, or two if it is conditional and can do without its conditions."""

    name: str
    evaluations: list[Evaluation]  # given its conditions; and without them
    parameters: int
    images_per_second: float  # median over the rows of its metrics, on this machine
    samples: torch.Tensor  # uint8 levels [N, C, H, W], without conditions
    caption: str  # what the samples are


def main(arguments: Sequence[str]) -> int | None:
    """Train the models that are not trained yet, evaluate all, write the table and the picture."""
    parser = command_parser("compare", __doc__)
    parser.add_argument("configs", nargs="+", metavar="CONFIG|key=value", help="YAML files, and overrides of all")
    parser.add_argument("--out", default="runs/compare", help="URL of the folder for the runs and the table")
    parser.add_argument(
        "--samples",
        type=int,
        default=10,
        metavar="K",
        help="draws of the latents in the evaluation",
    )
    options = parser.parse_intermixed_args(arguments)
    out = absolute(options.out)
    configs = _configs(options.configs, out)
    _check_same(configs)
    runs = {name: resolve(config) for name, config in configs.items()}
    entries = []
    for name, resolved in runs.items():
        print(f"--- {name}", flush=True)
        with StopOnSignal() as requests:
            finished = train_rank(resolved.config, requests).finished
        if not finished:
            return 0
        entries.append(_entry(name, resolved, options.samples))
    first = next(iter(runs.values()))
    budget, spec = first.config.trainer.images, first.spec
    folder = Storage(out)
    text = table(entries, budget, options.samples)
    folder.write("table.md", text.encode())
    facts = [_as_json(entry, found) for entry in entries for found in entry.evaluations]
    folder.write("table.json", json.dumps(facts, indent=1).encode())
    folder.write("samples.png", captioned_rows({entry.caption: entry.samples for entry in entries}, spec, COLUMNS))
    print(f"\n{text}\nsamples side by side: {join(out, 'samples.png')}")
    return 0


def table(entries: list[ComparedRun], budget: int, samples: int) -> str:
    """The comparison as a Markdown table: bounds conditional on the same together, unconditional ones first; the best
    first among each.
    """
    images = entries[0].evaluations[0].images
    lines = [
        f"Negative ELBO on {images:,} held-out images ({samples} draws each, averaged weights, float32) after "
        f"{budget:,} training images; distortion and rates in nats per image. A bound conditional on a label is one of "
        "p(x | label): it ranks among its like only.",
        "",
        "| model | conditional on | bits per dimension | nats | distortion | rate per level | parameters | "
        "training images/s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    pairs = [(entry, found) for entry in entries for found in entry.evaluations]
    for entry, found in sorted(pairs, key=lambda pair: (given_names(pair[1].conditions), pair[1].nats)):
        bpd = "a density" if found.is_density else f"{found.bpd:.4f}"
        rates = ", ".join(f"{name} {rate:.2f}" for name, rate in found.rates.items())
        nats = f"{found.nats:.2f} ± {found.standard_error:.2f}"
        conditions = in_words(found.conditions).removeprefix("conditional on ")
        cells = [entry.name, conditions, bpd, nats, f"{found.distortion:.2f}", rates, f"{entry.parameters:,}"]
        lines.append(f"| {' | '.join(cells)} | {entry.images_per_second:,.0f} |")
    return "\n".join(lines) + "\n"


def _entry(name: str, resolved: ResolvedRun, samples: int) -> ComparedRun:
    config, held_out = resolved.config, resolved.held_out
    assert held_out is not None
    accelerator = make_accelerator(resolved.precision)
    model = load(config.run).to(accelerator.device)
    size = batch_size(config.trainer.images_at_once, config.trainer.batch, ranks=1)
    hidden = model.hidden_in_training
    uses = ["given", "none"] if hidden and all(hidden.values()) and known_conditions(model) else ["given"]
    evaluations = []
    for use in uses:
        with evaluation_batches(
            config.data, held_out, batch=size, device=accelerator.device, tokenizers=model.tokenizers
        ) as batches:
            evaluations.append(evaluate(model, batches, config.seed, samples, conditions=use))
    model.eval()
    noise = Noise(config.seed, "sample", torch.arange(2 * COLUMNS, device=accelerator.device))
    with torch.no_grad(), full_precision(accelerator.device):
        drawn = model.sample(noise, **model.picture_options)
    paces = [row["images_per_second"] for row in read_metrics(Storage(config.run)) if "images_per_second" in row]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    of = model.samples_in_words(model.picture_options, none_given(evaluations[0].conditions))
    return ComparedRun(name, evaluations, parameters, statistics.median(paces), drawn.cpu(), f"{name}: {of}")


def _configs(arguments: Sequence[str], out: str) -> dict[str, RunConfig]:
    """The configurations by the names of their files, which name their runs in `out`. Raises ConfigError."""
    overrides = [argument for argument in arguments if "=" in argument]
    paths: dict[str, str] = {}
    for path in arguments:
        if path in overrides:
            continue
        name = Path(path).stem
        if name in paths:
            raise ConfigError(
                f"{paths[name]} and {path} would both train in {join(out, name)}; rename one of the files"
            )
        paths[name] = path
    return {name: load_config(path, [*overrides, f"run={join(out, name)}"]) for name, path in paths.items()}


def _check_same(configs: dict[str, RunConfig]) -> None:
    """Raises ConfigError unless all models train on the same images, and on equally many."""
    (first_name, first), *others = configs.items()
    if not first.data.validation:
        raise ConfigError(f"{first_name}: data.validation is missing; the models are compared on it")
    for name, config in others:
        if config.trainer.images != first.trainer.images:
            images = f"{first.trainer.images:,} in {first_name} and {config.trainer.images:,} in {name}"
            raise ConfigError(f"the budgets differ: {images} images; add trainer.images=N for all")
        for key in SAME:
            if getattr(config.data, key) != getattr(first.data, key):
                raise ConfigError(
                    f"{first_name} and {name} have different data.{key}; a comparison needs the same images"
                )


def _as_json(entry: ComparedRun, found: Evaluation) -> dict[str, object]:
    facts = {"model": entry.name, "parameters": entry.parameters, "images_per_second": entry.images_per_second}
    return facts | {"conditions": found.conditions} | found.row("evaluation")


if __name__ == "__main__":
    run(main)
