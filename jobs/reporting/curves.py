"""Which curves a report has: the figures of the rows of metrics, by images seen or by running time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from jobs.reporting.history import RunHistory, Values, number
from jobs.reporting.thinning import Point

LEVELS = 10  # of the rates of one run; more lines cannot be told apart
OTHERS = 24  # charts of figures that this file does not know
UNKNOWN = math.nan


class Curve(NamedTuple):
    """A line of a chart."""

    label: str
    colour: int
    points: list[Point]  # ascending x; a y of NaN interrupts the line
    faint: bool = False  # a thin line
    dots: bool = False  # a dot at each point


class Chart(NamedTuple):
    """Curves over one axis. `unit` is that of y."""

    title: str
    unit: str
    curves: list[Curve]
    from_zero: bool = False
    by_time: bool = False  # x is seconds instead of images
    may_be_log: bool = False
    note: str = ""


class _Figure(NamedTuple):
    title: str
    unit: str
    scale: float = 1.0
    from_zero: bool = True


FIGURES = {
    "train/distortion": _Figure("Distortion, training", "nats an image", from_zero=False),
    "validation/distortion": _Figure("Distortion, validation", "nats an image", from_zero=False),
    "train/gradient_norm": _Figure("Gradient norm", "before clipping, mean of the steps", from_zero=False),
    "train/skipped": _Figure("Skipped steps", "steps since the start"),
    "train/lr": _Figure("Learning rate", ""),
    "images_per_second": _Figure("Throughput", "images/s, all devices"),
    "mfu": _Figure("Model FLOPs utilisation", "% of peak", 100.0),
    "data_wait": _Figure("Waiting for data", "% of the time", 100.0),
    "checkpoint_stall": _Figure("Held up by checkpoints", "seconds between two rows"),
    "ranks/wait": _Figure("Waiting for the slowest rank, mean of the ranks", "% of the time", 100.0),
    "memory/peak": _Figure("Peak memory of a rank", "GiB", 2**-30),
    "evaluation/seconds": _Figure("Duration of an evaluation", "seconds"),
    "data/quarantined": _Figure("Quarantined images", "images since the start"),
}
ONLY_IF_POSITIVE = ("train/skipped", "data/quarantined")
NO_CURVES = (  # places, or shown elsewhere
    *("ranks/slowest", "memory/allocated", "memory/reserved", "train/micro_batch"),
    *("images", "time", "elapsed", "restarts", "rollbacks", "data/epoch", "validation/standard_error"),
    *("data/samples", "data/indexed", "data/quarantined_by_index"),
    *("images_per_second_per_device", "train/nats", "train/bpd", "validation/nats", "validation/bpd"),
)


def charts(runs: Sequence[RunHistory]) -> list[Chart]:
    """The charts of one run, or of several runs laid over each other; without those that have no points."""
    single = len(runs) == 1
    found = [*_bounds(runs), *(_rates_by_level(runs[0]) if single else [_total_rates(runs)])]
    if single:
        found.append(_pair(runs[0], "Distortion", "nats an image", "distortion"))
    shown = [key for key in FIGURES if not (single and key.endswith("/distortion"))]
    known = FIGURES.keys() | set(NO_CURVES)
    others = sorted(key for key in _numbers(runs) - known if "/rate/" not in key)[:OTHERS]
    found += [_by_run(runs, key, FIGURES.get(key, _Figure(key, "", from_zero=False))) for key in (*shown, *others)]
    kept = (chart._replace(curves=[curve for curve in chart.curves if _drawable(curve)]) for chart in found)
    return [chart for chart in kept if chart.curves]


def points(rows: Iterable[Values], key: str, scale: float = 1.0) -> list[Point]:
    """(images, value) of every row that has the figure; NaN where it is not finite."""
    found = []
    for row in rows:
        if key in row and isinstance(row[key], int | float):
            value = number(row, key)
            found.append((float(row["images"]), UNKNOWN if value is None else value * scale))
    return sorted(found, key=lambda point: point[0])


def total_rate(row: Values, split: str) -> float | None:
    """The sum of the rates of all levels, nats an image."""
    rates = [number(row, key) for key in row if key.startswith(f"{split}/rate/")]
    return sum(rate for rate in rates if rate is not None) if rates else None


def running_seconds(rows: Sequence[Values]) -> list[float | None]:
    """How long the run had been running at each row, without the pauses between attempts; None where unrecorded."""
    found: list[float | None] = []
    before = total = 0.0
    for row in rows:
        elapsed = number(row, "elapsed")
        if elapsed is not None:
            total += elapsed - before if elapsed >= before else elapsed  # a new process counts from zero
            before = elapsed
        found.append(total if elapsed is not None else None)
    return found


def unit_of_bound(runs: Sequence[RunHistory]) -> tuple[str, str]:
    """The name in the metrics and the unit of the bound: bits per dimension if every run has it, else nats."""

    def has(run: RunHistory, unit: str) -> bool:
        return any(f"{split}/{unit}" in row for row in run.rows for split in ("train", "validation"))

    all_bits = all(has(run, "bpd") or not has(run, "nats") for run in runs)
    return ("bpd", "bits per dimension") if all_bits else ("nats", "nats an image")


def _drawable(curve: Curve) -> bool:
    return any(not math.isnan(y) for _, y in curve.points)


def _bounds(runs: Sequence[RunHistory]) -> list[Chart]:
    key, unit = unit_of_bound(runs)
    if len(runs) == 1:
        pair = _pair(runs[0], "Negative bound", unit, key)
        return [pair._replace(note=_conditions(runs, "validation") or _conditions(runs, "train"))]
    by_time = [Curve(run.name, i, _by_time(run, key), dots=True) for i, run in enumerate(runs)]
    validation = _by_run(runs, f"validation/{key}", _Figure("Negative bound, validation", unit, from_zero=False))
    training = _by_run(runs, f"train/{key}", _Figure("Negative bound, training", unit, from_zero=False))
    timed = Chart("Negative bound, validation, by running time", unit, by_time, by_time=True)
    splits = ((validation, "validation"), (training, "train"), (timed, "validation"))
    return [chart._replace(note=_conditions(runs, split)) for chart, split in splits]


def _conditions(runs: Sequence[RunHistory], split: str) -> str:
    """What the bounds of a split are conditional on, by run where that differs; empty if no run says so."""
    last = {run.name: [str(row[key]) for row in run.rows if (key := f"{split}/conditions") in row][-1:] for run in runs}
    said = {name: found[0] for name, found in last.items() if found}
    if len(set(said.values())) < 2:
        return f"{next(iter(said.values()))}." if said else ""
    listed = "; ".join(f"{name}: {conditions}" for name, conditions in said.items())
    return f"{listed}. Bounds that are conditional on different things do not rank."


def _by_time(run: RunHistory, key: str) -> list[Point]:
    times = running_seconds(run.rows)
    found = [(time, number(row, f"validation/{key}")) for time, row in zip(times, run.rows, strict=True)]
    return [(time, value) for time, value in found if time is not None and value is not None]


def _pair(run: RunHistory, title: str, unit: str, name: str) -> Chart:
    """A figure of training (raw weights) and of validation (averaged weights)."""
    training = Curve("training, raw weights", 0, points(run.rows, f"train/{name}"), faint=True)
    validation = Curve("validation, averaged weights", 1, points(run.rows, f"validation/{name}"), dots=True)
    return Chart(title, unit, [training, validation])


def _rates_by_level(run: RunHistory) -> list[Chart]:
    prefix = "train/rate/"
    keys = [key for key in _numbers([run]) if key.startswith(prefix)]
    curves = {key.removeprefix(prefix): points(run.rows, key) for key in keys}
    names = sorted(curves, key=_natural)
    note = ""
    if len(names) > LEVELS:
        largest = sorted(names, key=lambda name: -abs(curves[name][-1][1]))[:LEVELS]
        note = f"The {LEVELS} levels of {len(names)} with the largest rates at the end."
        names = [name for name in names if name in largest]
    lines = [Curve(name, i, curves[name]) for i, name in enumerate(names)]
    return [Chart("Rates by level, training", "nats an image", lines, note=note)]


def _natural(name: str) -> tuple[str, int]:
    """z2 before z10."""
    digits = name[len(name.rstrip("0123456789")) :]
    return name.removesuffix(digits) if digits else name, int(digits or 0)


def _total_rates(runs: Sequence[RunHistory]) -> Chart:
    def totals(run: RunHistory) -> list[Point]:
        found = [(float(row["images"]), total_rate(row, "train")) for row in run.rows]
        return [(x, y) for x, y in found if y is not None]

    return Chart("Rate, all levels, training", "nats an image", _curves(runs, totals))


def _by_run(runs: Sequence[RunHistory], key: str, figure: _Figure) -> Chart:
    curves = _curves(runs, lambda run: points(run.rows, key, figure.scale), dots=_is_rare(key))
    if key in ONLY_IF_POSITIVE and not any(y > 0 for curve in curves for _, y in curve.points):
        curves = []
    return Chart(figure.title, figure.unit, curves, figure.from_zero, may_be_log=key == "train/gradient_norm")


def _is_rare(key: str) -> bool:
    """Figures of evaluations, a few in a run."""
    return key.startswith(("validation/", "evaluation/"))


def _curves(runs: Sequence[RunHistory], of: Callable[[RunHistory], list[Point]], dots: bool = False) -> list[Curve]:
    return [Curve(run.name, i, of(run), dots=dots) for i, run in enumerate(runs)]


def _numbers(runs: Sequence[RunHistory]) -> set[str]:
    """The names of all figures."""
    return {key for run in runs for row in run.rows for key in row if number(row, key) is not None}
