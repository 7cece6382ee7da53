"""A bar chart as a PNG: which level carries how much."""

from __future__ import annotations

import io

from PIL import Image, ImageDraw, ImageFont

WIDTH, BAR, LABEL, TEXT = 640, 18, 90, 13  # pixels


def bars(values: dict[str, float], title: str) -> bytes:
    """A PNG with a horizontal bar for each value, in the order given, under a title."""
    font = ImageFont.load_default(TEXT)
    image = Image.new("RGB", (WIDTH, (BAR + 4) * (len(values) + 1) + 12), "white")
    pen = ImageDraw.Draw(image)
    pen.text((8, 4), title, fill="black", font=font)
    longest = max((abs(value) for value in values.values()), default=0.0) or 1.0
    room = WIDTH - LABEL - 90
    for i, (name, value) in enumerate(values.items(), start=1):
        top = i * (BAR + 4) + 4
        length = round(room * abs(value) / longest)
        pen.text((8, top + 1), name, fill="black", font=font)
        pen.rectangle((LABEL, top, LABEL + length, top + BAR), fill="#3b6ea5" if value >= 0 else "#b5533c")
        pen.text((LABEL + length + 6, top + 1), f"{value:.3g}", fill="black", font=font)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
