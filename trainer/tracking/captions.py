"""Captions of pictures, kept in the PNG files themselves: what is shown, and what it is conditional on."""

from __future__ import annotations

import io

from PIL import Image
from PIL.PngImagePlugin import PngInfo

_KEYWORD = "Description"  # of the PNG specification


def as_metadata(caption: str) -> PngInfo:
    """A caption as PIL's `pnginfo`; nothing for an empty one."""
    text = PngInfo()
    if caption:
        text.add_itxt(_KEYWORD, caption)
    return text


def caption_of(png: bytes) -> str:
    """The caption of a PNG file; empty if it has none or cannot be read."""
    try:
        with Image.open(io.BytesIO(png)) as image:
            return str(image.info.get(_KEYWORD, ""))
    except (OSError, ValueError):
        return ""
