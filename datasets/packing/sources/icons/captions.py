"""The words of an icon: name, style and family, and the colours it is drawn in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Set
from typing import NamedTuple

_SUFFIXES = {  # of a font's names -> style
    "material design": {"outline": "outline"},
    "phosphor": {"bold": "bold", "fill": "fill", "light": "light", "thin": "thin", "duotone": "duotone"},
    "remix": {"fill": "fill", "line": "outline"},
    "font awesome": {},
    "codicons": {"filled": "fill", "outline": "outline"},
}
_OPPOSITE = {"outline": "fill", "fill": "outline"}
_PLAIN = {"font awesome": "solid"}  # style of names without a suffix; of other families see `split_name`
PLAIN = "regular"


class Words(NamedTuple):
    """What an icon's caption consists of."""

    name: str  # "folder heart"
    style: str  # outline, fill, thin, light, bold, duotone, solid or regular
    family: str  # "material design"


def split_name(family: str, name: str, names: Set[str]) -> tuple[str, str]:
    """(name without its style, style) of one of a font's `names`.

    Material Design and Codicons mark only one style of two: "folder" beside "folder-outline" is a filled icon, "heart"
    beside "heart-filled" an outlined one. A name without such a twin is of the style "regular".
    """
    base, _, suffix = name.rpartition("-")
    if base and (style := _SUFFIXES[family].get(suffix)):
        return base, style
    if family in ("material design", "codicons"):
        for suffix, style in _SUFFIXES[family].items():
            if f"{name}-{suffix}" in names:
                return name, _OPPOSITE[style]
    return name, _PLAIN.get(family, PLAIN)


def caption(words: Words, colours: tuple[str, str] | None = None) -> str:
    """The caption: "folder heart, outline, material design", in colour "red on white: folder heart, ..."."""
    text = ", ".join(words)
    return f"{colours[0]} on {colours[1]}: {text}" if colours else text


def fields(words: Words, colours: tuple[str, str] | None = None) -> bytes:
    """The same as JSON: name, style, family, and in colour foreground and background."""
    values = words._asdict()
    if colours:
        values |= {"foreground": colours[0], "background": colours[1]}
    return json.dumps(values).encode()


def hash_of(text: str) -> int:
    """Uniform in 0..2^64 - 1, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(f"icons/{text}".encode(), digest_size=8).digest(), "big")
