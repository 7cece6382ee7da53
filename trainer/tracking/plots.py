"""Plots as PNG files. Matplotlib is imported on first use: it takes a second, and most commands draw nothing."""

from __future__ import annotations

import io

WIDTH, BAR, MARGIN, DPI = 6.4, 0.22, 0.9, 100  # inches; height of a bar with its gap; of title and axis; pixels an inch
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
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
