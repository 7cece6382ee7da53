"""A bound beside another one of the same images by the same noise, image by image."""

from __future__ import annotations

from typing import Any

from datasets.conditions.config import TextConfig
from datasets.config import DataConfig
from datasets.loading.conditions import check_conditions
from jobs.errors import ConfigError
from jobs.evaluating.opened import Opened, open_other, opened
from jobs.run.reports import keep, weights_text
from jobs.run.worst import name_of, named
from trainer.distributed.ranks import on_rank_zero
from trainer.elbo import bits_per_dimension
from trainer.tracking.display import say_on_rank_zero
from trainer.tracking.plots import histogram
from trainer.training.image_bounds import bounds_of_images
from trainer.training.paired import ImageDifference, PairedDifference, paired_difference

OPTIONS = ("against", "against_weights", "against_caption", "against_condition")
INFORMATION = "an estimate of the information in the conditions about an image, no bound of it"


def evaluate_against(settings: dict[str, Any]) -> None:
    """Evaluate both and report the difference. All ranks together."""
    own = opened(settings)
    changes = {
        "run": settings["against"],
        "weights": settings["against_weights"],
        "condition": settings["against_condition"],
    }
    changed = settings | {name: value for name, value in changes.items() if value is not None}
    column = settings["against_caption"]
    data = _with_caption(own.data, column) if column else None
    other = open_other(own, changed, data)
    if data is not None:
        check_conditions(data, own.index)
    bounds, lines = [], []
    for side in (own, other):
        partners = side.partners(side.uses)
        with side.batches() as batches:
            bounds.append(bounds_of_images(side.model, batches, side.estimate, side.uses, side.index.images, partners))
        lines += side.same_conditions(partners)
    found = paired_difference(*bounds)
    warnings = own.warnings(own.uses, found.images)
    warnings += [line for line in other.warnings(other.uses, found.images) if line not in warnings]
    differences = (bounds[1] - bounds[0])[~(bounds[1] - bounds[0]).isnan()].tolist()
    on_rank_zero(lambda: _report(own, other, found, differences, [f"warning: {line}" for line in warnings] + lines))


def _with_caption(data: DataConfig, choice: str) -> DataConfig:
    """The data with a caption from elsewhere: NAME=json.recaption. Raises ConfigError."""
    name, _, member = choice.partition("=")
    texts = [key for key, given in data.conditions.items() if isinstance(given, TextConfig)]
    if name not in texts or not member:
        known = f"the run has {', '.join(texts)}" if texts else "the run has no captions"
        raise ConfigError(f"--against-caption {choice}: NAME=MEMBER with the name of a caption, {known}")
    try:
        changed = TextConfig.model_validate(
            data.conditions[name].model_dump() | {"members": [member], "probabilities": None}
        )
    except ValueError as error:
        raise ConfigError(
            f"--against-caption {choice}: {member} is neither an extension nor a field of .json"
        ) from error
    return data.model_copy(update={"conditions": {**data.conditions, name: changed}})


def _report(own: Opened, other: Opened, found: PairedDifference, differences: list[float], lines: list[str]) -> None:
    """Write the report and the histogram, then print."""
    spec, is_density = own.model.spec, own.model.is_density or other.model.is_density
    against = {
        "run": other.subject.folder.url,
        "weights": other.loaded.weights,
        "images_seen": other.loaded.images,
        "conditions": other.uses,
        "captions": own.settings["against_caption"],
    }
    report = own.facts(found.images) | {"against": against}
    in_nats = is_density or spec.patches is not None  # images of any shape have no D in common
    report |= {"figures": found.row(None if in_nats else spec.dimensions)}
    report |= {"best": _named(own, found.best), "worst": _named(own, found.worst)}
    title = f"{_side(other, own)} - {_side(own, other)}"
    plot = histogram(differences, f"{title}: mean {found.nats:.4g} ± {found.standard_error:.2g} nats", "nats an image")
    name = own.name("against", _side(other, own))
    text = as_text(own, other, found, report)
    for line in [*lines, text, *keep(own.subject, name, report, plot)]:
        say_on_rank_zero(line)


def as_text(own: Opened, other: Opened, found: PairedDifference, report: dict[str, Any]) -> str:
    """The report for a screen."""
    density = own.model.is_density or other.model.is_density
    names = [_side(own, other), _side(other, own)]
    width = max(map(len, names))
    lines = [f"{report['estimate']}, {report['precision']}, {found.images:,} images of {report['split']}"]
    for name, nats, side in zip(names, (found.own, found.other), (own, other), strict=True):
        lines.append(f"  {name:<{width}} {nats:12.4f} nats, {side.in_words()}, {weights_text(side.loaded)}")
    bits = ""
    if not density and own.model.spec.patches is None:
        parts = (bits_per_dimension(x, own.model.spec.dimensions) for x in (found.nats, found.standard_error))
        bits = " ({:.5f} ± {:.5f} bpd)".format(*parts)
    lines.append(
        f"{names[1]} - {names[0]}: {found.nats:.4f} ± {found.standard_error:.4f} nats{bits}, by the same noise"
    )
    lines.append(f"  unpaired, on different images, the error would be ± {found.unpaired_error:.4f} nats")
    if _is_information(own, other):
        lines.append(f"  {INFORMATION}")
    for title, images in (("largest", report["best"]), ("smallest", report["worst"])):
        if images:
            lines.append(f"  {title} difference {images[0]['difference']:.4f} nats: {name_of(images[0])}")
    return "\n".join(lines)


def _is_information(own: Opened, other: Opened) -> bool:
    """Whether the difference is between one model with and without its conditions."""
    same = own.loaded is other.loaded
    return same and set(own.uses.values()) == {"given"} and set(other.uses.values()) == {"none"}


def _side(side: Opened, beside: Opened) -> str:
    """What tells one side from the other."""
    parts = []
    if side.settings["run"] != beside.settings["run"]:
        parts.append(side.subject.folder.url.rpartition("/")[2])
    if side.settings["weights"] != beside.settings["weights"]:
        parts.append(side.loaded.weights)
    if side.data.conditions != beside.data.conditions and side.subject.folder.url == beside.subject.folder.url:
        texts = [given for given in side.data.conditions.values() if isinstance(given, TextConfig)]
        parts.append("+".join(member for given in texts for member in given.members))
    if side.uses != beside.uses:
        uses = set(side.uses.values())
        parts.append(uses.pop() if len(uses) == 1 else ",".join(f"{name}={use}" for name, use in side.uses.items()))
    return " ".join(parts) or "the same"


def _named(own: Opened, images: tuple[ImageDifference, ...]) -> list[dict[str, Any]]:
    names = named(own.index, [image.position for image in images])
    return [
        name | {"difference": image.nats, "own": image.own, "other": image.other}
        for name, image in zip(names, images, strict=True)
    ]
