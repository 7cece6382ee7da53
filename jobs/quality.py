"""Compare samples of a run with real images: Frechet distance, precision and recall on chosen features.

    python -m jobs.quality RUN_URL [--features pixels|inception|package.module:function] [--split validation|train|URL]
                                   [--count N] [--condition given]
                                   [the options of jobs.sample: --sampler, --steps, --guidance, --label ...]

With `--condition given` sample i has the conditions of image i of the split: its caption, its class, its vectors.

A feature function maps images, uint8 [B, C, H, W] of 0 to 255, to [B, F]. The distance on `inception` (torch-fidelity's
network, which has to be installed with its weights) is the FID; on other features it is not.
"""

from __future__ import annotations

import argparse
import functools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cluster.storage.storage import absolute
from datasets.loading.build import evaluation_batches
from datasets.shards.index import Index
from jobs.cli import check_at_least_one, command_parser, progress_bar, run
from jobs.config.other_images import check_format
from jobs.errors import ConfigError
from jobs.ray.tasks import each
from jobs.run.reports import OWN_SPLITS, Subject, file_name, keep, split_name, subject_of, weights_text
from jobs.sampling.options import add_options, labels_of, sampling_options
from jobs.sampling.plan import SamplingPlan, model_here, opened, sample, uses_of, weights_checksum
from trainer.condition_values import Value, join_values, map_value
from trainer.conditions import all_given, in_words
from trainer.distributed.device import full_precision
from trainer.images import ImageSpec, visible
from trainer.models import Model
from trainer.models.base import condition
from trainer.patches import by_shape
from trainer.sampling import SampleConditions
from trainer.training.sample_quality import INCEPTION, NEIGHBOURS, Features, compare, features


class RealImages(NamedTuple):
    """What is known of the images of a split, in its order."""

    features: Tensor  # [N, F]
    conditions: dict[str, Value]  # that the model takes, on the CPU


@dataclass(frozen=True)
class PairedPlan(SamplingPlan):
    """Sample i has the conditions of image i, in turn."""

    given: Mapping[str, Value] = field(default_factory=dict)

    @functools.cached_property
    def conditions(self) -> SampleConditions:
        return SampleConditions(values=self.given)


def main(arguments: Sequence[str]) -> int:
    """Sample, compare, print the figures and write them to <run>/evaluations/."""
    options = _parser().parse_args(arguments)
    options.run = absolute(options.run)
    subject = subject_of(options.run)
    index = subject.index(options.split, options.index)
    loaded = opened(options.run, options.weights)
    plan = _plan(options, loaded.model)
    features(options.features)  # raises if it does not exist, before the work
    real, given = real_images(plan, subject, index, options.features)
    plan = replace(plan, count=options.count or len(real))
    if options.condition:
        if not given:
            raise ConfigError(f"--condition given: {options.run} is not conditioned on what {options.split} has")
        plan = PairedPlan(**vars(plan), given=given)
    samples = all_sampled_features(plan, options.features, options.processes)
    quality = compare(samples, real)
    split = options.split if options.split in OWN_SPLITS else absolute(options.split)
    report: dict[str, Any] = {"features": options.features, "split": split, "set": index.fingerprint}
    report |= {"weights": loaded.weights, "images_seen": loaded.images, "precision": plan.precision}
    report["conditions"] = dict(uses_of(plan, loaded.model)) | all_given(given.keys() if options.condition else [])
    report |= {"samples": len(samples), "images": len(real), "numbers": samples.shape[1], "neighbours": NEIGHBOURS}
    report |= {"seed": plan.seed, "temperature": plan.temperature, "labels": plan.labels}
    report["sampling"] = plan.settings
    report["figures"] = {f"quality/{name}": value for name, value in quality._asdict().items()}
    usual = loaded.model.sampling.model_dump()
    name = file_name(
        *("quality", split_name(options.split, index), options.features, len(samples), loaded.weights, loaded.images),
        *(plan.seed and f"seed{plan.seed}", plan.temperature != 1 and f"temperature{plan.temperature:g}"),
        options.condition,
        *(plan.labels and f"label{'.'.join(map(str, plan.labels[:4]))}", plan.precision != "fp32" and plan.precision),
        *(f"{key}-{value}" for key, value in plan.settings.items() if value != usual[key]),
    )
    written = keep(subject, name, report)
    print("\n".join([as_text(report, weights_text(loaded)), *written]))
    return 0


def _plan(options: argparse.Namespace, model: Model) -> SamplingPlan:
    check_at_least_one(options, "batch", "count")
    if options.condition and options.label:
        raise ConfigError("--label: cannot be used with --condition given")
    return SamplingPlan(
        run=options.run,
        weights=options.weights,
        fingerprint=weights_checksum(model),
        out="",
        format="images",
        count=options.count or 0,
        batch=options.batch,
        unit=options.batch,
        seed=options.seed,
        temperature=options.temperature,
        precision=options.precision,
        labels=labels_of(options, model),
        settings=sampling_options(options, model, others=bool(options.condition)),
    )


def real_images(plan: SamplingPlan, subject: Subject, index: Index, features_name: str) -> RealImages:
    """Features and conditions of every image of a split, as the run sees them."""
    config, extract, (model, device) = subject.config, features(features_name), model_here(plan)
    check_format(model.spec, config.data, index)
    found: list[Tensor] = []
    given: dict[str, list[Value]] = defaultdict(list)
    with (
        full_precision(device),
        evaluation_batches(config.data, index, batch=plan.batch, device=device, tokenizers=model.tokenizers) as batches,
    ):
        for batch in batches:
            rows = batch.weights.nonzero()[:, 0]  # of images, not of padding
            if len(rows):
                found.append(features_of(batch.images[rows], model.spec, extract))
            for name, value in (condition(model, batch.conditions) or {}).items():
                given[name].append(map_value(lambda column: column.cpu(), map_value(itemgetter(rows), value)))
    return RealImages(torch.cat(found), {name: join_values(values) for name, values in given.items()})


def features_of(images: Tensor, spec: ImageSpec, extract: Features) -> Tensor:
    """[N, F] of a batch of images on the CPU; images of each shape together."""
    found = [(numbers, extract(visible(part, spec.levels)).cpu()) for numbers, part in by_shape(images, spec)]
    order = torch.cat([numbers for numbers, _ in found]).argsort()
    return torch.cat([values for _, values in found])[order]


def all_sampled_features(plan: SamplingPlan, name: str, processes: int | None) -> Tensor:
    """[N, F] of the samples of a plan, made by `processes` (None: one per GPU, else one per core)."""
    made: dict[int, Tensor] = {}
    with progress_bar(plan.count) as bar:
        for first, found in each(partial(sampled_features, plan, name), plan.units(), processes, gpu=True):
            made[first] = found
            bar.update(len(found))
    return torch.cat([made[first] for first in plan.units()])


def sampled_features(plan: SamplingPlan, name: str, first: int) -> tuple[int, Tensor]:
    """The first image of a unit of samples, and [n, F] of the unit."""
    positions = torch.arange(first, min(first + plan.unit, plan.count))
    images, (model, device) = sample(plan, positions), model_here(plan)
    with full_precision(device):  # whatever the samples were made in
        return first, features_of(images.to(device), model.spec, features(name))


def as_text(report: dict[str, Any], weights: str) -> str:
    """The report for a screen: the figures, and what was compared."""
    figures = report["figures"]
    distance = "FID" if report["features"] == INCEPTION else "Frechet distance"
    sampling = ", ".join(f"{name} {value}" for name, value in report["sampling"].items())
    conditions = " ".join([in_words(report["conditions"]), ",".join(map(str, report["labels"]))]).strip()
    warmth = f", temperature {report['temperature']:g}" if report["temperature"] != 1 else ""
    lines = [
        f"{distance} {figures['quality/frechet']:.4f}, precision {figures['quality/precision']:.4f}, recall "
        f"{figures['quality/recall']:.4f} ({report['neighbours']} neighbours), {report['numbers']} features of "
        f"{report['features']}",
        f"{report['samples']:,} samples, {weights}, {report['precision']}, seed {report['seed']}{warmth}, {conditions}"
        f"{', ' + sampling if sampling else ''}, and {report['images']:,} images of {report['split']}",
    ]
    if min(report["samples"], report["images"]) <= report["numbers"]:
        lines.append("  fewer images than features: the distance says little; use more images or other features")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("quality", __doc__)
    parser.add_argument("run", help="URL of a run folder, or of an export")
    parser.add_argument("--features", default="pixels", help=f"pixels (8 x 8 means), {INCEPTION}, or module:function")
    parser.add_argument("--split", default="validation", help="validation or train of the run, or a URL of shards")
    parser.add_argument("--index", default="", help="with --split URL: URL of their index (default: <split>/index)")
    parser.add_argument("--condition", choices=["given"], default="", help="sample by the conditions of the images")
    parser.add_argument("--count", type=int, help="samples (default: as many as the split has images)")
    add_options(parser)
    return parser


if __name__ == "__main__":
    run(main)
