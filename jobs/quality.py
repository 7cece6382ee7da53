"""Samples of a run beside real images: Frechet distance, precision and recall, on features that you name.

    python -m jobs.quality RUN_URL [--features pixels|inception|package.module:function] [--split validation|train|URL]
                                   [--count N] [the options of jobs.sample: --sampler, --steps, --guidance, --label ...]

A function of features takes images, uint8 [B, C, H, W] of 0 to 255, and gives [B, F]. The distance on `inception` (the
network of torch-fidelity, which has to be installed and to have its weights) is the FID; on others it is not.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from cluster.storage.storage import Storage, absolute
from datasets.loading.loader import evaluation_batches
from jobs.cli import run
from jobs.config.schema import RunConfig, config_of
from jobs.evaluate import file_name, index_of, keep, known
from jobs.ray.tasks import each
from jobs.run.training import EVALUATION_BATCH
from jobs.sampling.options import add_options, at_least_one, labels_of, settings_of
from jobs.sampling.plan import Plan, fingerprint, opened, sample
from trainer.checkpoints.weights import in_words
from trainer.images import visible
from trainer.training.sample_quality import INCEPTION, NEIGHBOURS, compare, features


def main(arguments: Sequence[str]) -> int:
    """Sample, compare, print the figures and write them to <run>/evaluations/."""
    parser = argparse.ArgumentParser(prog="python -m jobs.quality", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", help="URL of the run folder")
    parser.add_argument("--features", default="pixels", help=f"pixels (8 x 8 means), {INCEPTION}, or module:function")
    parser.add_argument("--split", default="validation", help="validation or train of the run, or a URL of shards")
    parser.add_argument("--count", type=int, help="samples (default: as many as the split has images)")
    add_options(parser)
    options = parser.parse_args(arguments)
    options.run = absolute(options.run)
    config = config_of(Storage(options.run))
    model, _ = opened(options.run, options.weights)
    settings, labels = settings_of(options, model), labels_of(options, model)
    features(options.features)  # raises if there are none, before the work
    real = real_features(config, options.split, options.features, model.spec.levels)
    options.count = len(real) if options.count is None else options.count
    at_least_one(options, "count", "batch")
    plan = Plan(
        run=options.run,
        weights=options.weights,
        fingerprint=fingerprint(model),
        out="",
        format="images",
        count=options.count,
        batch=options.batch,
        unit=options.batch,
        seed=options.seed,
        temperature=options.temperature,
        labels=labels,
        settings=settings,
    )
    made: dict[int, Tensor] = {}
    with tqdm(total=plan.count, unit=" images", disable=not sys.stderr.isatty()) as bar:
        work = partial(sampled_features, plan, options.features)
        for first, found in each(work, plan.units(), options.processes, gpu=True):
            made[first] = found
            bar.update(len(found))
    samples = torch.cat([made[first] for first in plan.units()])
    quality = compare(samples, real)
    report: dict[str, Any] = {"features": options.features, "split": options.split, "weights": options.weights}
    report |= {"samples": len(samples), "images": len(real), "numbers": samples.shape[1], "neighbours": NEIGHBOURS}
    report |= {"seed": plan.seed, "temperature": plan.temperature, "labels": plan.labels, "sampling": plan.settings}
    report["figures"] = {f"quality/{name}": value for name, value in quality._asdict().items()}
    print(as_text(report))
    name = file_name("quality", known(options.split), options.features, len(samples), options.weights)
    keep(Storage(options.run), config, name, report)
    return 0


def real_features(config: RunConfig, split: str, name: str, levels: int) -> Tensor:
    """[N, F] of every image of a split, as the run sees them."""
    extract, index = features(name), index_of(config, split)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with evaluation_batches(config.data, index, batch=EVALUATION_BATCH, device=device) as batches:
        found = [extract(visible(batch.images[batch.weights > 0], levels)).cpu() for batch in batches]
    return torch.cat(found)


def sampled_features(plan: Plan, name: str, first: int) -> tuple[int, Tensor]:
    """The first of a unit of samples, and [n, F] of them."""
    positions = torch.arange(first, min(first + plan.unit, plan.count))
    model, device = opened(plan.run, plan.weights)
    return first, features(name)(visible(sample(plan, positions), model.spec.levels).to(device)).cpu()


def as_text(report: dict[str, Any]) -> str:
    """The report for a screen: the figures, and what they are of."""
    figures = report["figures"]
    fid = "FID" if report["features"] == INCEPTION else "Frechet distance"
    sampling = ", ".join(f"{name} {value}" for name, value in report["sampling"].items())
    labels = f", labels {','.join(map(str, report['labels']))}" if report["labels"] else ""
    lines = [
        f"{fid} {figures['quality/frechet']:.4f}, precision {figures['quality/precision']:.4f}, recall "
        f"{figures['quality/recall']:.4f} ({report['neighbours']} neighbours), on the {report['numbers']} numbers of "
        f"{report['features']}",
        f"{report['samples']:,} samples, {in_words(report['weights'])} weights, seed {report['seed']}{labels}"
        f"{', ' + sampling if sampling else ''}, beside {report['images']:,} images of {report['split']}",
    ]
    if min(report["samples"], report["images"]) <= report["numbers"]:
        lines.append("  fewer images than numbers: the distance says little; take more, or other features")
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
