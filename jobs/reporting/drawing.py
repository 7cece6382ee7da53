"""A chart as an inline SVG with its legend, and the figures that the page's script shows under the pointer."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import NamedTuple

from jobs.reporting.axes import Axis, closer_axis, is_wide, round_numbers, whole_axis
from jobs.reporting.curves import Chart, Curve
from jobs.reporting.markup import Markup, join, tag
from jobs.reporting.numerals import plain, tick
from jobs.reporting.thinning import Part, thinned

WIDTH, HEIGHT = 600, 250
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 10, 40  # margins around the plot
COLOURS = 10  # of the style sheet; further curves repeat them, dashed
DOTS = 60  # evaluations of a curve that still have a dot each


class Mark(NamedTuple):
    """A vertical line at an image count."""

    images: float
    kind: str  # restart or rollback


class Line(NamedTuple):
    """A curve as it is drawn."""

    curve: Curve
    parts: list[Part]

    @property
    def last(self) -> float:
        """The last finite value; NaN if there is none."""
        return next((y for _, y in reversed(self.curve.points) if not math.isnan(y)), math.nan)

    @property
    def finite(self) -> list[Part]:
        return [part for part in self.parts if not math.isnan(part.y)]


def draw(chart: Chart, marks: Sequence[Mark] = ()) -> Markup:
    """The chart as a figure: title, legend and the plot; two plots where a few values would flatten all others."""
    lines = [Line(curve, thinned(curve.points)) for curve in chart.curves]
    values = [value for line in lines for part in line.finite for value in {part.low, part.high}]
    log = chart.may_be_log and is_wide(min(values), max(values))
    whole = whole_axis(min(values), max(values), HEIGHT - BOTTOM, TOP, chart.from_zero, log)
    closer = None if log or chart.from_zero else closer_axis(values, [line.last for line in lines], whole)
    unit = tag("span", f" {chart.unit}", class_="unit") if chart.unit else ""
    parts = [tag("p", chart.note, class_="note")] if chart.note else []
    if closer is None:
        title = tag("figcaption", tag("b", chart.title), unit)
        plots = [_plot(chart, lines, whole, marks)]
    else:
        title = tag(
            "figcaption", tag("b", chart.title), unit, tag("button", "whole range", type="button", class_="range")
        )
        plots = [_plot(chart, lines, closer[0], marks, "near"), _plot(chart, lines, whole, marks, "all-values")]
        parts.append(tag("p", closer[1], class_="note near"))
    return tag("figure", title, _legend(lines), *plots, *parts, class_="chart")


def _plot(chart: Chart, lines: list[Line], y: Axis, marks: Sequence[Mark], name: str = "") -> Markup:
    x = Axis(0.0, max(part.x for line in lines for part in line.parts) * 1.02 or 1.0, LEFT, WIDTH - RIGHT)
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    drawn = [_line(line, x, y) for line in lines]
    picture = tag(
        "svg",
        *_grid(x, y, chart.by_time),
        *([] if chart.by_time else [_mark(mark, x) for mark in marks]),
        # An svg of its own, which cuts off what lies outside it.
        tag("svg", *drawn, x=LEFT, y=TOP, width=width, height=height, viewBox=f"{LEFT} {TOP} {width} {height}"),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=f"{chart.title}, {chart.unit}",
    )
    figures = {
        "plot": [LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM, WIDTH],
        "x": [x.low, x.high],
        "time": chart.by_time,
        "curves": [
            {"name": line.curve.label, "colour": _colour(line.curve), "points": list(map(_figures, line.finite))}
            for line in lines
        ],
    }
    data = Markup(json.dumps(figures, separators=(",", ":")).replace("<", "\\u003c"))
    return tag("div", picture, tag("script", data, type="application/json"), class_=f"plot {name}".rstrip())


def _figures(part: Part) -> list[float]:
    """[x, y], with the range of y if it has one; six digits."""
    values = part[1:] if part.low < part.high else part[1:2]
    return [round(part.x, 1), *(float(f"{value:.6g}") for value in values)]


def _grid(x: Axis, y: Axis, by_time: bool) -> list[Markup]:
    bottom = HEIGHT - BOTTOM
    parts = []
    for value in y.ticks():
        at = round(y.at(value), 1)
        parts.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=at, y2=at, class_="grid"))
        parts.append(tag("text", tick(value), x=LEFT - 6, y=at + 3.5, class_="tick left"))
    unit, scale = _time_unit(x.high) if by_time else ("images seen", 1.0)
    for value in round_numbers(0.0, x.high / scale, 6):
        parts.append(tag("text", tick(value), x=round(x.at(value * scale), 1), y=bottom + 15, class_="tick"))
    parts.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=bottom, y2=bottom, class_="axis"))
    parts.append(tag("text", unit, x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 6, class_="tick"))
    return parts


def _time_unit(seconds: float) -> tuple[str, float]:
    for size, unit in ((172_800.0, "days"), (7200.0, "hours"), (180.0, "minutes")):
        if seconds >= size:
            return f"{unit} of running time", {"days": 86400.0, "hours": 3600.0, "minutes": 60.0}[unit]
    return "seconds of running time", 1.0


def _mark(mark: Mark, x: Axis) -> Markup:
    at = round(x.at(mark.images), 1)
    return tag("line", x1=at, x2=at, y1=TOP, y2=HEIGHT - BOTTOM, class_=f"mark {mark.kind}")


def _line(line: Line, x: Axis, y: Axis) -> Markup:
    """The curve as a path, interrupted where values are not finite; behind it the range of each part as a band."""
    segments: list[list[Part]] = [[]]
    for part in line.parts:
        if math.isnan(part.y):
            segments.append([])
        else:
            segments[-1].append(part)
    drawn = []
    for segment in filter(None, segments):
        if any(part.low < part.high for part in segment):
            edge = [(part.x, part.high) for part in segment] + [(part.x, part.low) for part in reversed(segment)]
            drawn.append(tag("path", d=_path(edge, x, y) + "Z", class_="band"))
        drawn.append(tag("path", d=_path([(part.x, part.y) for part in segment], x, y), class_="line"))
        if len(segment) == 1 or (line.curve.dots and len(line.parts) <= DOTS):
            places = [_place(part.x, part.y, x, y) for part in segment]
            drawn += [tag("circle", cx=f"{left:.1f}", cy=f"{top:.1f}", r=2.6) for left, top in places]
    classes = f"curve {_colour(line.curve)}{' faint' if line.curve.faint else ''}"
    return tag("g", *drawn, class_=classes, data_curve=line.curve.label)


def _path(points: Sequence[tuple[float, float]], x: Axis, y: Axis) -> str:
    places = [_place(*point, x, y) for point in points]
    return "".join(f"{'L' if i else 'M'}{left:.1f} {top:.1f}" for i, (left, top) in enumerate(places))


def _place(at: float, value: float, x: Axis, y: Axis) -> tuple[float, float]:
    """Clamped far outside the plot, where coordinates would have no meaning."""
    return x.at(at), min(max(y.at(value), -HEIGHT), 2.0 * HEIGHT)


def _colour(curve: Curve) -> str:
    return f"c{curve.colour % COLOURS}{' dashed' if curve.colour >= COLOURS else ''}"


def _legend(lines: list[Line]) -> Markup:
    """The curves with their last values; a click hides a curve in all charts. Of a single curve its last value."""
    if len(lines) == 1:
        return tag("div", tag("span", f"at the end {plain(lines[0].last)}", class_="last"), class_="legend")
    entries = []
    for line in lines:
        curve, value = line.curve, tag("span", plain(line.last), class_="last")
        key = tag("i", class_=f"key {_colour(curve)}{' faint' if curve.faint else ''}")
        entries.append(
            tag("button", key, f"{curve.label} ", value, type="button", class_="entry", data_curve=curve.label)
        )
    return tag("div", join(entries), class_="legend")
