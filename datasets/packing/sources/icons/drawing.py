"""Draw a glyph by Pillow: fitted into a frame, centred, in grey levels, binary or in two colours."""

from __future__ import annotations

from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from datasets.images.decode import Pixels
from datasets.packing.sources.icons.captions import hash_of

COLOURS = {
    "black": (0, 0, 0),
    "white": (255, 255, 255),
    "grey": (128, 128, 128),
    "red": (214, 39, 40),
    "orange": (255, 140, 0),
    "yellow": (255, 221, 51),
    "green": (34, 139, 34),
    "cyan": (64, 208, 224),
    "blue": (31, 78, 200),
    "purple": (120, 40, 150),
    "pink": (255, 150, 190),
    "brown": (120, 70, 25),
}
_CONTRAST = 3.0  # least ratio of relative luminances, as WCAG 2 defines it
_THRESHOLD = 0.4  # share of a binary pixel that the glyph covers
_COMPARED = 32.0  # size at which glyphs are compared
_SCALE = {"fontawesome6": 0.84}  # of the font's size: its glyphs fill their em box, the other fonts' have a margin


def draw(font: Path, glyph: str, height: int, width: int) -> Pixels:
    """The share of each pixel that a glyph covers, uint8 [height, width].

    The font's em box is centred, so that icons keep their relative size and place. A glyph that would come closer to
    the border than the margin, a 24th of the smaller side, is moved, and drawn smaller if it has to be.
    """
    smaller = min(height, width)
    margin = -(-smaller // 24)
    size = smaller * _SCALE.get(font.name.partition("-")[0], 1.0)
    while True:
        canvas = Image.new("L", (2 * width, 2 * height))
        ImageDraw.Draw(canvas).text((width, height), glyph, 255, _font(font, size), anchor="mm")
        left, top, right, bottom = canvas.getbbox() or (width, height, width + 1, height + 1)
        fit = min((width - 2 * margin) / (right - left), (height - 2 * margin) / (bottom - top))
        if fit >= 1:
            break
        size = min(size - 0.25, size * fit // 0.25 * 0.25)
    x = min(max(width // 2, right + margin - width), left - margin)
    y = min(max(height // 2, bottom + margin - height), top - margin)
    return np.asarray(canvas.crop((x, y, x + width, y + height)))


def outline(font: Path, glyph: str) -> bytes:
    """Bytes that are equal for glyphs of one font that look the same; b"" if nothing is drawn."""
    mask = _font(font, _COMPARED).getmask(glyph)
    return bytes(mask) + str(mask.size).encode() if mask.getbbox() else b""


def as_levels(coverage: Pixels, levels: int) -> Pixels:
    """Round coverage to levels 0 (background) to levels - 1 (ink): uint8 [H, W, 1]."""
    share = coverage[:, :, None].astype(np.float32) / 255
    grey = share >= _THRESHOLD if levels == 2 else np.rint(share * (levels - 1))
    return grey.astype(np.uint8)


def in_colours(coverage: Pixels, foreground: str, background: str) -> Pixels:
    """Mix two colours by coverage: uint8 [H, W, 3]."""
    ink, paper = (np.array(COLOURS[name], dtype=np.float32) for name in (foreground, background))
    return np.rint(paper + (ink - paper) * (coverage[:, :, None] / np.float32(255))).astype(np.uint8)


def colours_of(key: str) -> tuple[str, str]:
    """(foreground, background) of an icon, by a hash of its key."""
    pairs = _pairs()
    return pairs[hash_of(f"colours/{key}") % len(pairs)]


@cache
def _pairs() -> tuple[tuple[str, str], ...]:
    """The pairs of colours of sufficient contrast."""
    light = {name: _luminance(colour) + 0.05 for name, colour in COLOURS.items()}
    return tuple(
        (ink, paper)
        for ink in COLOURS
        for paper in COLOURS
        if max(light[ink], light[paper]) / min(light[ink], light[paper]) >= _CONTRAST
    )


def _luminance(colour: tuple[int, int, int]) -> float:
    """Relative luminance (WCAG 2.2)."""
    linear = [value / 255 / 12.92 if value <= 10 else ((value / 255 + 0.055) / 1.055) ** 2.4 for value in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@lru_cache(64)
def _font(path: Path, size: float) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)
