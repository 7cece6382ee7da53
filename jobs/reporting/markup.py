"""HTML as text, escaped by construction: a plain `str` is text, only `Markup` is HTML source."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence


class Markup(str):
    """HTML source. Every other string is escaped where it enters an element."""

    __slots__ = ()


VOID = ("img", "meta", "line", "path", "rect", "circle")  # without content: no closing tag


def tag(name: str, *content: str, **attributes: object) -> Markup:
    """An element. `class_` is the attribute class, `data_run` is data-run; None and False leave an attribute out."""
    given = "".join(
        f' {key.strip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in VOID:
        return Markup(f"<{name}{given}/>")
    return Markup(f"<{name}{given}>{join(content)}</{name}>")


def join(parts: Iterable[str]) -> Markup:
    """The parts one after the other, each escaped unless it is Markup."""
    return Markup("".join(part if isinstance(part, Markup) else html.escape(part) for part in parts))


def table(head: Sequence[str], rows: Iterable[Sequence[str]], text: Sequence[str] = ()) -> Markup:
    """A table that scrolls sideways where it is too wide. Columns named in `text` are aligned left, as the first is."""
    left = [i == 0 or name in text for i, name in enumerate(head)]

    def line(cell: str, values: Sequence[str]) -> Markup:
        cells = [tag(cell, value, class_="text" if at else None) for value, at in zip(values, left, strict=True)]
        return tag("tr", *cells)

    body = [line("td", row) for row in rows]
    return tag("div", tag("table", tag("thead", line("th", head)), tag("tbody", *body)), class_="scroll")


def facts(pairs: Iterable[tuple[str, str]]) -> Markup:
    """Names and values, a line each."""
    return tag("dl", *(join([tag("dt", name), tag("dd", value)]) for name, value in pairs))
