"""Sections of a report that are tables: data ledger, attempts, environment, evaluations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from jobs.reporting.history import RunHistory, Values, number
from jobs.reporting.markup import Markup, facts, join, table, tag
from jobs.reporting.numerals import plain
from jobs.reporting.summary import NONE, flat
from trainer.checkpoints.lineage import Attempt

MOST = 100  # rows of a table


def ledger(run: RunHistory) -> Markup:
    """Images expected, seen and quarantined by epoch, and every quarantined image."""
    epochs = [entry for row in run.rows for entry in _entries(row, "ledger")]
    bad = [entry for row in run.rows for entry in _entries(row, "quarantined")]
    if not epochs and not bad:
        return tag("p", "No finished epoch yet (a mixture of sets has no epochs).", class_="note")
    whole = [epoch for epoch in epochs if epoch.get("seen") == epoch.get("expected") and not epoch.get("quarantined")]
    parts = []
    if epochs:
        expected = sum(int(number(epoch, "expected") or 0) for epoch in epochs)
        seen = sum(int(number(epoch, "seen") or 0) for epoch in epochs)
        text = f"{len(epochs):,} finished epochs: {seen:,} of {expected:,} images seen. "
        other = f"{len(epochs) - len(whole):,} epochs are not complete:" if len(whole) < len(epochs) else ""
        parts.append(tag("p", text + (other or "Every epoch is complete.")))
    columns = ["epoch", "expected", "seen", "quarantined"]
    parts += _limited(columns, [epoch for epoch in epochs if epoch not in whole], text=())
    if bad:
        parts.append(tag("h4", f"{len(bad):,} quarantined images"))
        parts += _limited(["epoch", "position", "shard", "key", "reason"], bad, text=("shard", "key", "reason"))
    return join(parts)


def attempts(run: RunHistory) -> Markup:
    """Every attempt at the run: when, where, from which commit, with which code; and what a rollback changed."""
    rows = [_attempt(run, attempt) for attempt in list(run.attempts.values())[-MOST:]]
    head = ["attempt", "began", "host", "from image", "committed until", "in the history", "code", "devices", "remarks"]
    note = "The run's history is the chain of attempts behind its newest commit; what others wrote is not used."
    return join([table(head, rows, text=head[1:3] + head[5:]), tag("p", note, class_="note")])


def _attempt(run: RunHistory, attempt: Attempt) -> list[str]:
    known, remarks = attempt.facts, []
    made = known.get("provenance") if isinstance(known.get("provenance"), dict) else {}
    assert isinstance(made, dict)
    if "rolled_back" in known:
        remarks.append(f"rolled back: {known['rolled_back']}")
    if (factor := number(known, "lr_factor")) not in (None, 1.0):
        remarks.append(f"learning rate x {factor:g}")
    reached = run.reached.get(attempt.number)
    return [
        str(attempt.number),
        str(known.get("began", "-")),
        str(known.get("host", made.get("hostname", "-"))),
        f"{attempt.start.images:,}" if attempt.start else "0",
        f"{reached:,}" if reached is not None else "-",
        "yes" if attempt.number in run.lineage else "no",
        _code(made),
        ", ".join(f"{count} x {name}" for name, count in _mapping(made, "devices").items()) or "-",
        "; ".join(remarks),
    ]


def environment(run: RunHistory) -> Markup:
    """What the newest attempt ran with: code, versions, devices, precision."""
    newest = run.attempts[max(run.attempts)].facts if run.attempts else {}
    made = newest.get("provenance")
    if not isinstance(made, dict):
        host = f" Host: {newest['host']}." if "host" in newest else ""
        return tag("p", f"The newest attempt recorded no versions or devices.{host}", class_="note")
    return facts(flat(made))


def evaluations(runs: Sequence[RunHistory]) -> Markup:
    """The reports of jobs.evaluate and jobs.quality, a line each; lists in them, such as the worst images, below."""
    rows, below = [], []
    for run in runs:
        for name, report in run.evaluations.items():
            given = [f"{key} {value}" for key, value in flat(_settings(report)) if value != NONE]
            figures = [tag("span", f"{key} ", tag("b", value), class_="figure") for key, value in _figures(report)]
            label = f"{run.name}: {name}" if len(runs) > 1 else name
            rows.append([tag("span", label, class_="whole"), join(figures), ", ".join(given)])
            for key, entries in report.items():
                if isinstance(entries, list) and (listed := [entry for entry in entries if isinstance(entry, dict)]):
                    columns = list(dict.fromkeys(str(column) for entry in listed[:MOST] for column in entry))[:12]
                    below += [tag("h4", f"{label}: {key.replace('_', ' ')}"), *_limited(columns, listed, text=columns)]
    if not rows:
        return tag("p", "None. `python -m jobs.evaluate RUN` adds one.", class_="note")
    return join([table(["report", "figures", "of"], rows[:MOST], text=["figures", "of"]), *below])


def _settings(report: Values) -> Values:
    return {key: value for key, value in report.items() if key != "figures" and not isinstance(value, list)}


def _figures(report: Values) -> list[tuple[str, str]]:
    figures = _mapping(report, "figures")
    return [(str(key).partition("/")[2] or str(key), _figure(figures, key)) for key in list(figures)[:MOST]]


def _figure(figures: Values, key: str) -> str:
    value = number(figures, key)
    if value is None:
        return str(figures[key])
    return f"{value:.4f}" if abs(value) < 1000 else plain(value)


def _code(made: Values) -> str:
    git = _mapping(made, "git")
    if not git.get("commit"):
        return "-"
    return str(git["commit"])[:10] + (" with changes" if git.get("clean") is False else "")


def _mapping(values: Values, key: str) -> dict[str, Any]:
    found = values.get(key)
    return found if isinstance(found, dict) else {}


def _entries(row: Values, key: str) -> list[Values]:
    found = row.get(key)
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []


def _limited(columns: Sequence[str], entries: Sequence[Values], text: Sequence[str]) -> list[Markup]:
    """A table of at most MOST entries; none if there are none."""
    if not entries:
        return []
    rows = [[_cell(entry.get(column)) for column in columns] for entry in entries[:MOST]]
    more = f"and {len(entries) - MOST:,} more" if len(entries) > MOST else ""
    return [table(list(columns), rows, text=text), *([tag("p", more, class_="note")] if more else [])]


def _cell(value: object) -> str:
    if isinstance(value, float):
        return plain(value) if math.isfinite(value) else str(value)
    return f"{value:,}" if isinstance(value, int) else "" if value is None else str(value)[:300]
