"""Animations of pictures."""

from __future__ import annotations

import io
from collections.abc import Sequence

from PIL import Image

FRAME, LAST = 60, 1500  # milliseconds of a frame, and of the last one


def gif(frames: Sequence[bytes]) -> bytes:
    """An endlessly repeating GIF of PNG files of one size."""
    images = [Image.open(io.BytesIO(frame)).convert("RGB") for frame in frames]
    durations = [FRAME] * (len(images) - 1) + [LAST]
    buffer = io.BytesIO()
    images[0].save(buffer, "GIF", save_all=True, append_images=images[1:], duration=durations, loop=0)
    return buffer.getvalue()
