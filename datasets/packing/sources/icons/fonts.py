"""The icon fonts inside the installed distribution of QtAwesome, which is not imported: it would import Qt."""

from __future__ import annotations

import json
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from datasets.errors import DataError
from datasets.packing.sources.icons.brands import is_brand
from datasets.packing.sources.icons.captions import Words, split_name
from datasets.packing.sources.icons.drawing import outline

FAMILIES = {  # caption -> beginning of the names of its files
    "material design": "materialdesignicons6-webfont",
    "phosphor": "phosphor",
    "remix": "remixicon",
    "font awesome": "fontawesome6-solid-webfont",
    "codicons": "codicon",
}
_MISSING = "the icons are fonts of the package qtawesome, which is not installed: uv pip install --group icons"


class Icon(NamedTuple):
    """A glyph and its words."""

    words: Words
    glyph: str  # the character
    font: Path

    @property
    def key(self) -> str:
        """A name that no other icon has: family, name and style."""
        return "/".join(self.words)


def font_version() -> str:
    """The installed version of QtAwesome. Raises `DataError` if there is none."""
    try:
        return version("qtawesome")
    except PackageNotFoundError:
        raise DataError(_MISSING) from None


@cache
def find_icons() -> tuple[Icon, ...]:
    """The icons of all families without brands, each drawing of a family once.

    Raises `DataError` if QtAwesome is missing.
    """
    spec = find_spec("qtawesome")
    if spec is None or not spec.submodule_search_locations:
        raise DataError(_MISSING)
    folder = Path(spec.submodule_search_locations[0]) / "fonts"
    return tuple(icon for family in FAMILIES for icon in _family(folder, family))


def _family(folder: Path, family: str) -> list[Icon]:
    font, charmap = _file(folder, family, ".ttf"), _file(folder, family, ".json")
    glyphs: dict[str, list[str]] = {}
    names: dict[str, str] = json.loads(charmap.read_bytes())
    for name, point in sorted(names.items()):
        glyphs.setdefault(chr(int(point, 16)), []).append(name)
    icons = []
    drawn = {b""}  # what is blank is left out
    for glyph, synonyms in glyphs.items():
        split = [split_name(family, name, names.keys()) for name in synonyms]
        if any(is_brand(family, name) for name, _ in split) or (shape := outline(font, glyph)) in drawn:
            continue
        drawn.add(shape)
        name, style = split[0]  # the first in the alphabet
        icons.append(Icon(Words(name.replace("-", " "), style, family), glyph, font))
    return icons


def _file(folder: Path, family: str, extension: str) -> Path:
    """<beginning>-1.2.ttf or <beginning>-charmap-1.2.json."""
    kind = "charmap-" if extension == ".json" else ""
    found = sorted(folder.glob(f"{FAMILIES[family]}-{kind}[0-9]*{extension}"))
    if len(found) != 1:
        raise DataError(f"{folder}: {len(found)} files {FAMILIES[family]}-{kind}*{extension}, expected 1")
    return found[0]
