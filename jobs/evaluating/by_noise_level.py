"""The diffusion's part of the bound by noise level, with the conditions, without them, and with other images'."""

from __future__ import annotations

from typing import Any

from jobs.errors import ConfigError
from jobs.evaluating.opened import Opened, opened
from jobs.run.reports import keep, weights_text
from trainer.conditions import given_names
from trainer.distributed.ranks import on_rank_zero
from trainer.tracking.display import say_on_rank_zero
from trainer.tracking.plots import Curve, curves
from trainer.training.noise_levels import (
    Choice,
    Figures,
    Level,
    LevelReport,
    diffusion_by_level,
    noise_levels_of,
    velocity_error_by_level,
)

FLUX = "mlperf"
BINS = 10
MOST_BINS = 1000


def evaluate_by_noise_level(settings: dict[str, Any]) -> None:
    """Evaluate and report. All ranks together."""
    bins = _bins(settings["by_noise_level"])
    if settings["samples"] != 1 or settings["bound"] != "elbo":
        raise ConfigError("--by-noise-level: is of the elbo, with one draw an image in each bin")
    own = opened(settings)
    noise_levels_of(own.model)
    choices, lines = _choices(own)
    partners = own.partners(dict(choices).get("shuffled", {}))
    with own.batches() as batches:
        if bins is None:
            found = velocity_error_by_level(own.model, batches, own.estimate, choices, partners)
        else:
            found = diffusion_by_level(own.model, batches, own.estimate, bins, choices, partners)
    lines += own.same_conditions(partners)
    lines += [f"warning: {line}" for line in own.warnings({}, found.images)]
    on_rank_zero(lambda: _report(own, found, lines))


def _bins(text: str) -> int | None:
    """The number of bins; None: the fixed levels of MLPerf's FLUX.1. Raises ConfigError."""
    if text == FLUX:
        return None
    if not text.isdecimal() or not 1 <= int(text) <= MOST_BINS:
        raise ConfigError(f"--by-noise-level {text}: a number of bins from 1 to {MOST_BINS}, or {FLUX}")
    return int(text)


def _choices(own: Opened) -> tuple[list[Choice], list[str]]:
    """The uses of the conditions that are compared, by name; and lines about those that are not."""
    names = given_names(own.uses)
    if not names:
        return [("none" if own.uses else "unconditional", own.uses)], []
    if "shuffled" in own.uses.values():
        raise ConfigError("--by-noise-level: has a column of shuffled conditions already; give --condition given")
    choices: list[Choice] = [("given", own.uses)]
    lines = []
    if never := [name for name in names if not own.model.hidden_in_training[name]]:
        lines.append(f"no column without conditions: training never hid {' and '.join(never)}")
    else:
        choices.append(("none", dict.fromkeys(own.uses, "none")))
    choices.append(("shuffled", own.uses | dict.fromkeys(names, "shuffled")))
    return choices, lines


def _report(own: Opened, found: LevelReport, lines: list[str]) -> None:
    kind = own.settings["by_noise_level"]
    report = own.facts(found.images)
    for key in ("bound", "samples", "estimate"):  # of other reports
        del report[key]
    report |= {"by_noise_level": kind, "unit": found.unit}
    report |= {"figures": _figures(found.total, "all")}
    for level in found.levels:
        report["figures"] |= _figures(level, level.name.replace(" ", ""))
    report["rows"] = [_as_json(level) for level in [*found.levels, found.total]]
    name = own.name("by-noise-level", kind)
    plot = curves(_curves(found), f"{_title(own, found)}, {weights_text(own.loaded)}", "log SNR")
    for line in [*lines, as_text(own, found), *keep(own.subject, name, report, plot)]:
        say_on_rank_zero(line)


def as_text(own: Opened, found: LevelReport) -> str:
    """The report as a table."""
    first = found.total
    header = ["t", "log SNR", *first.values, *(f"{use} - {next(iter(first.values))}" for use in first.differences)]
    rows = [header]
    for level in [*found.levels, found.total]:
        low, high = level.log_snr
        snr = f"{low:.2f}" if low == high else f"{low:.2f} to {high:.2f}"
        rows.append([level.name, snr, *map(_cell, level.values.values()), *map(_cell, level.differences.values())])
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    of = f"{found.images:,} images of {own.settings['split']}, {weights_text(own.loaded)}"
    return "\n".join([f"{_title(own, found)}: {of}", *lines])


def _title(own: Opened, found: LevelReport) -> str:
    if own.settings["by_noise_level"] == FLUX:
        return f"{found.unit} at the 8 equidistant times of MLPerf's FLUX.1, here t = (i + 1/2) / 8; all: their mean"
    return "diffusion term of the bound by noise level, nats an image; all: their sum"


def _cell(figures: Figures) -> str:
    return f"{figures.mean:.4g} ± {figures.standard_error:.1g}"


def _curves(found: LevelReport) -> list[list[Curve]]:
    """Two panels: the values, and the differences if there are any."""
    x = [sum(level.log_snr) / 2 for level in found.levels]

    def drawn(field: str, use: str, name: str) -> Curve:
        figures: list[Figures] = [getattr(level, field)[use] for level in found.levels]
        return Curve(name, x, [each.mean for each in figures], [each.standard_error for each in figures])

    first = next(iter(found.total.values))
    panels = [
        [drawn("values", use, use) for use in found.total.values],
        [drawn("differences", use, f"{use} - {first}") for use in found.total.differences],
    ]
    return [panel for panel in panels if panel]


def _figures(level: Level, name: str) -> dict[str, float]:
    row = {f"noise/{name}/{use}": figures.mean for use, figures in level.values.items()}
    for use, figures in level.differences.items():
        row |= {f"noise/{name}/{use}_difference": figures.mean}
        row |= {f"noise/{name}/{use}_difference_error": figures.standard_error}
    return row


def _as_json(level: Level) -> dict[str, Any]:
    return {
        "t": level.name,
        "log_snr": level.log_snr,
        "values": {use: figures._asdict() for use, figures in level.values.items()},
        "differences": {use: figures._asdict() for use, figures in level.differences.items()},
    }
