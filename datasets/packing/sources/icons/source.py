"""Captioned icons as a source of images."""

from __future__ import annotations

from datasets.errors import DataError
from datasets.images.decode import Pixels
from datasets.packing.sources.icons.captions import caption, fields
from datasets.packing.sources.icons.drawing import as_levels, colours_of, draw, in_colours
from datasets.packing.sources.icons.fonts import find_icons, font_version
from datasets.packing.sources.icons.splits import split_icons
from datasets.packing.sources.source import Example, InMemory, shuffled
from datasets.shards.index_files import Meta

_SMALLEST, _LARGEST = 8, 1024  # pixels a side


class Icons(InMemory):
    """The icons of five open fonts, light on dark, or in colour, with captions.

    `validation` is held out by image, `names` by name, `combinations` by pairs of words. Raises `DataError` if
    QtAwesome is missing.
    """

    splits: tuple[str, ...] = ("train", "validation", "names", "combinations")

    def __init__(self, height: int = 24, width: int = 24, levels: int = 256, colour: bool = False):
        if not (_SMALLEST <= height <= _LARGEST and _SMALLEST <= width <= _LARGEST):
            raise DataError(f"icons of {height} x {width} pixels: each side may be {_SMALLEST} to {_LARGEST}")
        if not 2 <= levels <= 256:
            raise DataError(f"icons of {levels} levels: 2 to 256 are possible")
        if colour and levels != 256:
            raise DataError(f"icons in colour have 256 levels, not {levels}")
        self._colour = colour
        source = f"icons of QtAwesome {font_version()}{', in colour' if colour else ''}"
        self.meta = Meta(
            3 if colour else 1, height, width, levels, binarised="static" if levels == 2 else "", source=source
        )
        self._icons = find_icons()
        numbers = split_icons([icon.words for icon in self._icons])
        self._numbers = {split: getattr(numbers, split) for split in self.splits}
        self._orders = {split: shuffled(self.count(split), f"icons/{split}") for split in self.splits}

    def count(self, split: str) -> int:
        return len(self._numbers.get(split, ()))

    def example(self, split: str, i: int) -> Example:
        icon = self._icons[self._numbers[split][self._orders[split][i]]]
        colours = colours_of(icon.key) if self._colour else None
        coverage = draw(icon.font, icon.glyph, self.meta.height, self.meta.width)
        image: Pixels = in_colours(coverage, *colours) if colours else as_levels(coverage, self.meta.levels)
        text = caption(icon.words, colours).encode()
        return Example(image, None, caption=text, fields=fields(icon.words, colours))
