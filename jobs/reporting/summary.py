"""The final figures of runs: as a head line of one, as a table of several."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from jobs.reporting.curves import running_seconds, total_rate, unit_of_bound
from jobs.reporting.history import RunHistory, Values, number
from jobs.reporting.markup import Markup, join, table, tag
from jobs.reporting.numerals import duration, plain

Fact = tuple[str, str, str]  # name, value, what it is of
FEW = 16  # settings that are listed without a click
MOST_DIFFERENCES = 60  # lines of the table of settings
NONE = "none"  # a setting without a value
MOST_SETTINGS = 5000  # of a configuration


class Best(NamedTuple):
    """The evaluation with the lowest negative bound, and how many followed it."""

    row: Values
    since: int


def final_figures(run: RunHistory, unit: str) -> list[Fact]:
    """Name, value and context of the figures that describe a run. `unit`: bpd or nats."""
    training = [row for row in run.rows if number(row, f"train/{unit}") is not None]
    found = [("state", *_state(run))]
    found += _validation(run, unit)
    if training:
        of = _of(unit, "raw weights", training[-1].get("train/conditions"))
        found.append(("training bound", _bound(training[-1], "train", unit), of))
        if (rate := total_rate(training[-1], "train")) is not None:
            found.append(("rate", plain(rate), "nats an image, training, all levels"))
    paces = [pace for row in run.rows if (pace := number(row, "images_per_second")) is not None]
    if paces:
        found.append(("throughput", plain(statistics.median(paces)), "images/s, median"))
    seconds = [time for time in running_seconds(run.rows) if time is not None]
    if seconds:
        found.append(("running time", duration(seconds[-1]), "without pauses between attempts"))
    if run.parameters is not None:
        found.append(("parameters", f"{run.parameters:,}", ""))
    found.append(("attempts", str(len(run.attempts)), _rollbacks(run)))
    return found


def best_evaluation(run: RunHistory, unit: str) -> Best | None:
    """The best evaluation of a run so far; None without a held-out set."""
    rows = [row for row in run.rows if number(row, f"validation/{unit}") is not None]
    if not rows:
        return None
    best = min(range(len(rows)), key=lambda i: number(rows[i], f"validation/{unit}") or 0.0)
    return Best(rows[best], len(rows) - 1 - best)


def cards(run: RunHistory) -> Markup:
    """The final figures of one run."""
    return tag(
        "div",
        *(
            tag("div", tag("span", name, class_="name"), tag("b", value), tag("span", of, class_="unit"))
            for name, value, of in final_figures(run, unit_of_bound([run])[0])
        ),
        class_="cards",
    )


def comparison(runs: Sequence[RunHistory]) -> Markup:
    """The final figures of several runs, a line each, and the settings in which they differ."""
    unit, _ = unit_of_bound(runs)
    figures = [final_figures(run, unit) for run in runs]
    names = list(dict.fromkeys(name for found in figures for name, _, _ in found))
    contexts = {name: {of for found in figures for other, _, of in found if other == name} for name in names}
    shared = {name: of.pop() for name, of in contexts.items() if len(of) == 1}
    rows = []
    for i, (run, found) in enumerate(zip(runs, figures, strict=True)):
        cells = {
            name: join([tag("span", value, class_="whole"), _context("" if name in shared else of)])
            for name, value, of in found
        }
        label = tag("span", tag("i", class_=f"key c{i % 10}"), run.name, class_="whole")
        rows.append([label, *(cells.get(name, "-") for name in names)])
    head = [join([name, _context(shared.get(name, ""))]) for name in names]
    return join([table(["run", *head], rows, text=head), *_differences(runs)])


def _context(text: str) -> Markup:
    return tag("span", f" {text}", class_="unit") if text else Markup("")


def _differences(runs: Sequence[RunHistory]) -> list[Markup]:
    settings = [dict(flat(run.config)) for run in runs]
    keys = list(dict.fromkeys(key for values in settings for key in values))
    differing = [key for key in keys if key != "run" and len({values.get(key, "-") for values in settings}) > 1]
    if not differing:
        return [tag("p", "The configurations are the same.", class_="note")]
    rows = [[key, *(values.get(key, "-") for values in settings)] for key in differing[:MOST_DIFFERENCES]]
    names = [run.name for run in runs]
    more = len(differing) - len(rows)
    note = [tag("p", f"and {more:,} more", class_="note")] if more else []
    title = f"Settings that differ: {len(differing):,}"
    listed = [table(["key", *names], rows, text=names), *note]
    if len(differing) <= FEW:
        return [tag("h3", title), *listed]
    return [tag("details", tag("summary", title), *listed)]


def flat(values: Values, prefix: str = "") -> list[tuple[str, str]]:
    """A nested mapping as dotted keys and short texts, at most MOST_SETTINGS."""

    def walk(value: object, key: str) -> Iterator[tuple[str, str]]:
        if isinstance(value, dict) and value and key.count(".") < 20:
            for name, below in value.items():
                yield from walk(below, f"{key}.{name}" if key else str(name))
        elif key:
            yield key, _text(value)

    return [pair for pair, _ in zip(walk(values, prefix), range(MOST_SETTINGS), strict=False)]


def _text(value: object) -> str:
    text = NONE if value is None else str(value)
    return text if len(text) <= 120 else text[:117] + "..."


def _state(run: RunHistory) -> tuple[str, str]:
    if run.is_finished:
        return "finished", f"{run.images_seen:,} images"
    budget = f" of {run.budget:,}" if run.budget else ""
    return "not finished", f"{run.images:,}{budget} images in its metrics"


def _validation(run: RunHistory, unit: str) -> list[Fact]:
    best = best_evaluation(run, unit)
    if best is None:
        return []
    last = [row for row in run.rows if number(row, f"validation/{unit}") is not None][-1]
    of = _of(unit, "averaged weights", last.get("validation/conditions"))
    found = [("validation bound", _bound(last, "validation", unit), of)]
    after = f"after {best.row['images']:,} images"
    since = f", {best.since} evaluation{'s' if best.since > 1 else ''} before the last" if best.since else ""
    found.append(("best validation bound", _bound(best.row, "validation", unit), after + since))
    return found


def _of(*facts: object) -> str:
    return ", ".join(str(fact) for fact in facts if fact)


def _bound(row: Values, split: str, unit: str) -> str:
    value, error = number(row, f"{split}/{unit}"), number(row, f"{split}/standard_error")
    nats = number(row, f"{split}/nats")
    assert value is not None
    digits = 4 if unit == "bpd" else 2
    if error is None or (unit == "bpd" and not nats):
        return f"{value:.{digits}f}"
    scale = value / nats if unit == "bpd" and nats else 1.0  # the error is in nats
    return f"{value:.{digits}f} ± {abs(error * scale):.{digits}f}"


def _rollbacks(run: RunHistory) -> str:
    count = sum("rolled_back" in attempt.facts for attempt in run.attempts.values())
    return f"{count} of them after a rollback" if count else ""
