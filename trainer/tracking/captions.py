"""Captions of pictures, kept in the PNG files themselves: what is shown, and what it is conditional on."""

from __future__ import annotations

import io

from PIL import Image
from PIL.PngImagePlugin import PngInfo

_KEYWORD = "Description"  # of the PNG specification
PROMPT = "Prompt"  # keyword of the caption that a sample was asked for


def as_metadata(caption: str, prompt: str = "") -> PngInfo:
    """A caption, and the prompt that was given, as PIL's `pnginfo`; nothing for empty ones."""
    text = PngInfo()
    for keyword, value in ((_KEYWORD, caption), (PROMPT, prompt)):
        if value:
            text.add_itxt(keyword, value)
    return text


def with_prompt(png: bytes, prompt: str) -> bytes:
    """A PNG file with its prompt in the metadata (Prompt)."""
    with Image.open(io.BytesIO(png)) as image:
        buffer = io.BytesIO()
        image.save(buffer, format="PNG", pnginfo=as_metadata("", prompt))
        return buffer.getvalue()


def caption_of(png: bytes) -> str:
    """The caption of a PNG file; empty if it has none or cannot be read."""
    try:
        with Image.open(io.BytesIO(png)) as image:
            return str(image.info.get(_KEYWORD, ""))
    except (OSError, ValueError):
        return ""
