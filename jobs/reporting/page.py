"""The report as one HTML page that loads nothing."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from jobs.reporting.curves import charts
from jobs.reporting.drawing import Mark, draw
from jobs.reporting.gallery import gallery, select
from jobs.reporting.history import RunHistory
from jobs.reporting.markup import Markup, join, tag
from jobs.reporting.records import attempts, environment, evaluations, ledger
from jobs.reporting.summary import cards, comparison

HERE = Path(__file__).parent


def page(runs: Sequence[RunHistory], made: str, picture_bytes: int) -> str:
    """The page about the runs. `made`: when; `picture_bytes`: limit of all pictures together."""
    single = len(runs) == 1
    title = runs[0].name if single else f"{len(runs)} runs: {', '.join(run.name for run in runs)}"
    sections = _sections(runs, picture_bytes)
    links = [tag("a", name, href=f"#{_anchor(name)}") for name in sections]
    body = [
        tag("header", tag("h1", title), *(_source(run) for run in runs), tag("nav", *links)),
        *_problems(runs),
        *(tag("section", tag("h2", name), content, id=_anchor(name)) for name, content in sections.items()),
        tag("footer", f"Made {made} by python -m jobs.report {' '.join(run.url for run in runs)}"),
    ]
    return _document(f"{title} - lowerbound report", join(body))


def _sections(runs: Sequence[RunHistory], picture_bytes: int) -> dict[str, Markup]:
    pictures = dict(zip([run.url for run in runs], select(runs, picture_bytes), strict=True))
    return {
        "Final figures": cards(runs[0]) if len(runs) == 1 else comparison(runs),
        "Curves": _curves(runs),
        "Samples": _each(runs, lambda run: gallery(run, pictures[run.url])),
        "Evaluations": evaluations(runs),
        "Data ledger": _each(runs, ledger),
        "Attempts": _each(runs, attempts),
        "Environment": _each(runs, environment),
        "Configuration": _each(runs, lambda run: tag("details", tag("summary", "config.yaml"), _pre(run.config_text))),
    }


def _curves(runs: Sequence[RunHistory]) -> Markup:
    drawn = charts(runs)
    if not drawn:
        return tag("p", "No metrics yet: they are written with the first checkpoint.", class_="note")
    marks = marks_of(runs[0]) if len(runs) == 1 else []
    kinds = {mark.kind for mark in marks}
    keys = [
        join([tag("i", class_=f"key mark {kind}"), f"{kind} "]) for kind in ("restart", "rollback") if kind in kinds
    ]
    hint = tag("p", "Point at a curve for its values; click a name to hide it. ", *keys, class_="note")
    return join([hint, tag("div", *(draw(chart, marks) for chart in drawn), class_="charts")])


def marks_of(run: RunHistory) -> list[Mark]:
    """Where attempts of the history began that continued another one."""
    found = []
    for number in run.lineage:
        attempt = run.attempts[number]
        if attempt.start is not None:
            found.append(Mark(attempt.start.images, "rollback" if "rolled_back" in attempt.facts else "restart"))
    return found


def _each(runs: Sequence[RunHistory], section: Callable[[RunHistory], Markup]) -> Markup:
    """A section for each run, below its name if there are several."""
    if len(runs) == 1:
        return section(runs[0])
    return join(part for run in runs for part in (tag("h3", run.name), section(run)))


def _source(run: RunHistory) -> Markup:
    return tag("p", run.url, class_="source")


def _problems(runs: Sequence[RunHistory]) -> list[Markup]:
    problems = list(dict.fromkeys(problem for run in runs for problem in run.problems))
    return [tag("div", *(tag("p", problem) for problem in problems), class_="problems")] if problems else []


def _pre(text: str) -> Markup:
    return tag("pre", text)


def _anchor(name: str) -> str:
    return name.lower().replace(" ", "-")


def _document(title: str, body: Markup) -> str:
    """The page around the body. Its policy lets a browser load nothing and run no script but this one."""
    style, script = (Markup((HERE / name).read_text()) for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", style),
    )
    return f"<!DOCTYPE html>\n{tag('html', head, tag('body', body, tag('script', script)), lang='en')}\n"
