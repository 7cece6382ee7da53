"""A chart as an inline SVG with its legend, and the figures that the page's script shows under the pointer."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from jobs.reporting.curves import Chart, Curve, Point, thinned
from jobs.reporting.markup import Markup, join, tag

WIDTH, HEIGHT = 600, 250
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 10, 40  # margins around the plot
COLOURS = 10  # of the style sheet; further curves repeat them, dashed
OUTLYING = 0.1  # share of the values at either end that may lie outside the axis
STRETCH = 2.5  # outside they are only if the axis would be this many times as long
DECADES = 30.0  # highest / lowest value from which on an axis is logarithmic


class Mark(NamedTuple):
    """A vertical line at an image count."""

    images: float
    kind: str  # restart or rollback


class Axis(NamedTuple):
    """A range of values on a range of the drawing."""

    low: float
    high: float
    start: float  # where `low` is drawn
    stop: float
    log: bool = False

    def at(self, value: float) -> float:
        low, high, value = (math.log10(x) if self.log else x for x in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.stop - self.start)

    def ticks(self) -> list[float]:
        if not self.log:
            return _round_numbers(self.low, self.high, 5)
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        factors = (1, 2, 5) if self.high / self.low < 200 else (1,)
        found = [factor * 10.0**decade for decade in decades for factor in factors]
        found = [value for value in found if self.low <= value <= self.high]
        return found[:: max(1, len(found) // 6)]


def draw(chart: Chart, marks: Sequence[Mark] = ()) -> Markup:
    """The chart as a figure: title, legend and the plot; two plots where a few values would flatten all others."""
    curves = [curve._replace(points=thinned(curve.points)) for curve in chart.curves]
    shown = chart._replace(curves=curves)
    values = [y for curve in curves for _, y in curve.points if not math.isnan(y)]
    log = chart.may_be_log and min(values) > 0 and max(values) > DECADES * min(values)
    whole = _whole(values, chart.from_zero, log)
    near, note = _near(curves, values) if not (log or chart.from_zero) else (None, "")
    plots = [_plot(shown, near or whole, marks, None)]
    if near:
        plots = [_plot(shown, near, marks, "near"), _plot(shown, whole, marks, "all-values")]
    unit = tag("span", f" {chart.unit}", class_="unit") if chart.unit else ""
    switch = tag("button", "whole range", type="button", class_="range") if near else ""
    return tag(
        "figure",
        tag("figcaption", tag("b", chart.title), unit, switch),
        _legend(curves),
        *plots,
        tag("p", chart.note, class_="note") if chart.note else "",
        tag("p", note, class_="note near") if note else "",
        class_="chart",
    )


def short(value: float) -> str:
    """A number as a tick label: 20k, 1.5M, 0.001."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):.4g}{letter}"
    return re.sub(r"e([+-])0*", r"e\1", f"{value:.4g}").replace("e+", "e")


def duration(seconds: float) -> str:
    """45 s, 12 min, 3.5 h or 2.1 d."""
    for size, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def plain(value: float) -> str:
    """A figure with four significant digits."""
    if abs(value) >= 1000 or value == round(value):
        return f"{value:,.0f}"
    return f"{value:#.4g}" if abs(value) >= 0.001 else short(value)


def _whole(values: list[float], from_zero: bool, log: bool) -> Axis:
    low, high = min(values), max(values)
    if log:
        return _vertical(low / 1.2, high * 1.2, log=True)
    low = min(low, 0.0) if from_zero else low
    room = 0.06 * (high - low) or abs(high) * 0.05 or 1.0
    return _vertical(low if from_zero and low == 0 else low - room, high + room)


def _near(curves: list[Curve], values: list[float]) -> tuple[Axis | None, str]:
    """An axis without outlying values and a line that says so; None where all values fit well on one axis."""
    if len(values) < 20:
        return None, ""
    ordered = sorted(values)
    ends = [y for curve in curves for _, y in curve.points[-1:] if not math.isnan(y)]
    low = min([ordered[round(OUTLYING * (len(ordered) - 1))], *ends])
    high = max([ordered[round((1 - OUTLYING) * (len(ordered) - 1))], *ends])
    room = 0.1 * (high - low)
    if room == 0 or ordered[-1] - ordered[0] < STRETCH * (high - low):
        return None, ""
    axis = _vertical(max(low - room, ordered[0] - room / 2), min(high + room, ordered[-1] + room / 2))
    outside = [f"highest {plain(ordered[-1])}"] if ordered[-1] > axis.high else []
    outside += [f"lowest {plain(ordered[0])}"] if ordered[0] < axis.low else []
    return axis, f"Outside the axis: {', '.join(outside)}."


def _vertical(low: float, high: float, log: bool = False) -> Axis:
    if not low < high:
        low, high = low - (abs(low) or 1.0) * 0.05, high + (abs(high) or 1.0) * 0.05
    return Axis(low, high, HEIGHT - BOTTOM, TOP, log)


def _plot(chart: Chart, y: Axis, marks: Sequence[Mark], name: str | None) -> Markup:
    xs = [x for curve in chart.curves for x, _ in curve.points]
    x = Axis(0.0, max(xs) * 1.02 or 1.0, LEFT, WIDTH - RIGHT)
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    lines = [_line(curve, x, y) for curve in chart.curves]
    picture = tag(
        "svg",
        *_grid(x, y, chart.by_time),
        *([] if chart.by_time else [_mark(mark, x) for mark in marks]),
        # An svg of its own, which cuts off what lies outside it.
        tag("svg", *lines, x=LEFT, y=TOP, width=width, height=height, viewBox=f"{LEFT} {TOP} {width} {height}"),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=f"{chart.title}, {chart.unit}",
    )
    figures = {
        "plot": [LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM, WIDTH],
        "x": [x.low, x.high],
        "time": chart.by_time,
        "curves": [
            {"name": curve.label, "colour": _colour(curve), "points": [_brief(p) for p in curve.points if p[1] == p[1]]}
            for curve in chart.curves
        ],
    }
    data = Markup(json.dumps(figures, separators=(",", ":")).replace("<", "\\u003c"))
    return tag("div", picture, tag("script", data, type="application/json"), class_=f"plot {name}" if name else "plot")


def _brief(point: Point) -> list[float]:
    return [float(f"{value:.6g}") if i else round(value, 1) for i, value in enumerate(point)]


def _grid(x: Axis, y: Axis, by_time: bool) -> list[Markup]:
    bottom = HEIGHT - BOTTOM
    parts = []
    for value in y.ticks():
        at = round(y.at(value), 1)
        parts.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=at, y2=at, class_="grid"))
        parts.append(tag("text", short(value), x=LEFT - 6, y=at + 3.5, class_="tick left"))
    unit, scale = _time_unit(x.high) if by_time else ("images seen", 1.0)
    for value in _round_numbers(0.0, x.high / scale, 6):
        parts.append(tag("text", short(value), x=round(x.at(value * scale), 1), y=bottom + 15, class_="tick"))
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


def _line(curve: Curve, x: Axis, y: Axis) -> Markup:
    """The curve as a path; clamped far outside the plot, where coordinates would be meaningless."""
    path, dots, drawing = [], [], False
    for at, value in curve.points:
        if math.isnan(value):
            drawing = False
            continue
        place = x.at(at), min(max(y.at(value), -HEIGHT), 2.0 * HEIGHT)
        path.append(f"{'L' if drawing else 'M'}{place[0]:.1f} {place[1]:.1f}")
        if curve.dots and len(curve.points) <= 60:
            dots.append(tag("circle", cx=f"{place[0]:.1f}", cy=f"{place[1]:.1f}", r=2.6))
        drawing = True
    classes = f"curve {_colour(curve)}{' faint' if curve.faint else ''}"
    return tag("g", tag("path", d="".join(path)), *dots, class_=classes, data_curve=curve.label)


def _colour(curve: Curve) -> str:
    return f"c{curve.colour % COLOURS}{' dashed' if curve.colour >= COLOURS else ''}"


def _legend(curves: list[Curve]) -> Markup:
    """The curves with their last values; a click hides a curve in all charts. Of a single curve its last value."""
    entries = []
    if len(curves) == 1:
        last = next(y for _, y in reversed(curves[0].points) if not math.isnan(y))
        return tag("div", tag("span", f"at the end {plain(last)}", class_="last"), class_="legend")
    for curve in curves:
        last = next((y for _, y in reversed(curve.points) if not math.isnan(y)), math.nan)
        value = tag("span", plain(last), class_="last")
        key = tag("i", class_=f"key {_colour(curve)}{' faint' if curve.faint else ''}")
        entries.append(
            tag("button", key, f"{curve.label} ", value, type="button", class_="entry", data_curve=curve.label)
        )
    return tag("div", join(entries), class_="legend")


def _round_numbers(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers in [low, high], equally far apart."""
    step = (high - low) / count
    power = 10.0 ** math.floor(math.log10(step))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= 0.999 * step)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]
