"""Rate and distortion: what each level of latents takes, and how close to the image it comes."""

from __future__ import annotations

import math
from typing import Any

from jobs.errors import ConfigError
from jobs.evaluating.opened import Opened, opened
from jobs.run.reports import keep, weights_text
from trainer.distributed.ranks import on_rank_zero
from trainer.elbo import bits_per_dimension
from trainer.tracking.display import say_on_rank_zero
from trainer.tracking.plots import Curve, curves
from trainer.training.rate_distortion import RateDistortion, rate_distortion

SHOWN = 12  # levels on a screen


def evaluate_rate_distortion(settings: dict[str, Any]) -> None:
    """Evaluate and report. All ranks together."""
    if settings["bound"] != "elbo" or settings["samples"] != 1:
        raise ConfigError("--rate-distortion: is of the elbo, with one draw an image")
    own = opened(settings)
    if own.model.is_density:
        raise ConfigError("--rate-distortion: the model's likelihood is a density, which has no length in bits")
    partners = own.partners(own.uses)
    with own.batches() as batches:
        found = rate_distortion(own.model, batches, own.estimate, own.uses, partners)
    lines = own.same_conditions(partners)
    lines += [f"warning: {line}" for line in own.warnings(own.uses, found.images)]
    on_rank_zero(lambda: _report(own, found, lines))


def _report(own: Opened, found: RateDistortion, lines: list[str]) -> None:
    rows = _rows(own, found)
    report = own.facts(found.images) | {"rate_distortion": "mean squared error on a scale of 0 to 255"}
    report |= {"figures": {"rate_distortion/bpd": rows[-1]["bpd"]}, "rows": rows}
    for row in (rows[0], rows[-2]):
        report["figures"] |= {f"rate_distortion/{row['level']}/{key}": row[key] for key in ("bpd", "mse")}
    title = f"rate and distortion, {found.images:,} images of {own.settings['split']}, {weights_text(own.loaded)}"
    x = [row["bpd"] for row in rows]
    none = [0.0] * len(rows)
    panels = [
        [Curve("mean squared error (0 to 255)", x, [row["mse"] for row in rows], none)],
        [Curve("bits per dimension still to come", x, [row["bpd_left"] for row in rows], none)],
    ]
    plot = curves(panels, title, "bits per dimension received")
    for line in [*lines, _as_text(title, rows), *keep(own.subject, own.name("rate-distortion"), report, plot)]:
        say_on_rank_zero(line)


def _rows(own: Opened, found: RateDistortion) -> list[dict[str, Any]]:
    """A row for each level, from the top; the last is the image itself."""
    dimensions, whole = found.dimensions, found.levels[-1].nats
    return [
        {
            "level": level.name,
            "bpd": bits_per_dimension(level.nats, dimensions),
            "bpd_left": bits_per_dimension(whole - level.nats, dimensions),
            "mse": level.squared_error,
            "psnr": 10 * math.log10(255**2 / level.squared_error) if level.squared_error else None,
        }
        for level in found.levels
    ]


def _as_text(title: str, rows: list[dict[str, Any]]) -> str:
    """A table of some of the levels."""
    count = min(SHOWN, len(rows))
    shown = [rows[round(i * (len(rows) - 1) / max(count - 1, 1))] for i in range(count)]
    lines = [f"  {row['level']:>10} {row['bpd']:9.4f} {row['bpd_left']:12.4f} {row['mse']:10.2f}" for row in shown]
    return "\n".join([f"{title}:", "       level bpd so far bpd to come        mse", *lines])
