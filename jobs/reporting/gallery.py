"""The pictures of runs by image count, within a total size."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import NamedTuple

from cluster.storage.errors import MissingError
from jobs.reporting.history import Picture, RunHistory
from jobs.reporting.markup import Markup, join, tag
from trainer.tracking.captions import caption_of

MOST = 32  # pictures of a name


class Selection(NamedTuple):
    """The pictures of one name that a report shows."""

    shown: list[Picture]
    total: int  # that the run has


def select(runs: Sequence[RunHistory], limit: int) -> list[dict[str, Selection]]:
    """The pictures of each run by name: evenly spread over the run, the newest always among them.

    `limit`: bytes of all in the page. Every name of every run gets a part of it in proportion to its size.
    """
    total = sum(_embedded(picture) for run in runs for pictures in run.pictures.values() for picture in pictures)
    share = min(limit / total, 1.0) if total else 1.0
    return [
        {name: Selection(_fitting(pictures, share), len(pictures)) for name, pictures in run.pictures.items()}
        for run in runs
    ]


def gallery(run: RunHistory, selections: dict[str, Selection]) -> Markup:
    """A strip of pictures for each name, oldest first; says how many were left out."""
    strips = []
    for name, selection in selections.items():
        few = len(selection.shown) < selection.total
        note = f"{len(selection.shown)} of {selection.total} shown, to bound the size of this file" if few else ""
        figures = [_figure(run, name, picture) for picture in selection.shown]
        strips.append(tag("h4", name, tag("span", f" {note}", class_="unit") if note else ""))
        strips.append(tag("div", *figures, class_="strip"))
    return join(strips) if strips else tag("p", "No pictures yet: they are drawn at each evaluation.", class_="note")


def _figure(run: RunHistory, name: str, picture: Picture) -> Markup:
    try:
        png = run.storage.read(picture.path)
    except MissingError:  # deleted meanwhile
        return Markup("")
    data = base64.b64encode(png).decode()
    text = f"{picture.images:,} images"
    image = tag("img", src=f"data:image/png;base64,{data}", alt=f"{name} after {text}", title="enlarge", loading="lazy")
    caption = caption_of(png)
    return tag("figure", image, tag("figcaption", f"{text}: {caption}" if caption else text))


def _fitting(pictures: list[Picture], share: float) -> list[Picture]:
    """As many as fit into their share of the bytes, evenly spread, the last one included."""
    allowed = share * sum(_embedded(picture) for picture in pictures)
    for count in range(min(len(pictures), MOST), 0, -1):
        chosen = _spread(pictures, count)
        if sum(_embedded(picture) for picture in chosen) <= allowed:
            return chosen
    return []


def _spread(pictures: list[Picture], count: int) -> list[Picture]:
    if count == 1:
        return pictures[-1:]
    return [pictures[round(i * (len(pictures) - 1) / (count - 1))] for i in range(count)]


def _embedded(picture: Picture) -> int:
    """Bytes of a picture in base64."""
    return 4 * -(-picture.size // 3)
