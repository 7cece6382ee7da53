"""Plots as PNG files. Matplotlib is imported on first use: it takes a second, and most commands draw nothing."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, BAR, MARGIN, DPI = 6.4, 0.22, 0.9, 100  # inches; height of a bar with its gap; of title and axis; pixels an inch
PANEL = 2.6  # inches; height of a panel of curves
POSITIVE, NEGATIVE = "#3b6ea5", "#b5533c"


def bars(values: dict[str, float], title: str, unit: str = "") -> bytes:
    """A PNG with a horizontal bar for each value, from top to bottom, with its number; `unit` labels the axis."""
    from matplotlib.figure import Figure  # without pyplot: draws by Agg, needs no display and keeps no state

    figure = Figure(figsize=(WIDTH, MARGIN + BAR * len(values)), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    numbers = list(values.values())
    drawn = axes.barh(range(len(values)), numbers, color=[POSITIVE if x >= 0 else NEGATIVE for x in numbers])
    axes.bar_label(drawn, [f"{x:.3g}" for x in numbers], padding=3, fontsize=8)
    axes.set_yticks(range(len(values)), list(values), fontsize=8)
    axes.set_ylim(len(values) - 0.4, -0.6)  # the first one on top
    axes.margins(x=0.12)  # room for the numbers
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel(unit, fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.set_title(title, fontsize=9)
    _plain(axes)
    return _png(figure)


class Curve(NamedTuple):
    """A line of a plot."""

    name: str
    x: list[float]
    y: list[float]
    errors: list[float]  # half the length of the bars


def curves(panels: Sequence[Sequence[Curve]], title: str, x_label: str) -> bytes:
    """A PNG with the panels below one another, on one axis."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, MARGIN + PANEL * len(panels)), dpi=DPI, layout="constrained")
    for axes, panel in zip(figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0], panels, strict=True):
        for curve in panel:
            axes.errorbar(curve.x, curve.y, curve.errors, label=curve.name, marker=".", linewidth=1, capsize=2)
        axes.axhline(0, color="black", linewidth=0.8)
        axes.tick_params(labelsize=8)
        axes.legend(fontsize=8, frameon=False)
        _plain(axes)
    axes.set_xlabel(x_label, fontsize=8)
    figure.suptitle(title, fontsize=8, wrap=True)
    return _png(figure)


def histogram(values: Sequence[float], title: str, x_label: str) -> bytes:
    """A PNG with the distribution of `values` (counts on a logarithmic axis), and a line at zero."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, MARGIN + PANEL), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    axes.hist(values, bins=60, color=POSITIVE, log=True)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel(x_label, fontsize=8)
    axes.set_ylabel("images", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.set_title(title, fontsize=8, wrap=True)
    _plain(axes)
    return _png(figure)


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
