"""Crop, resize and flip; the random parts are a function of (seed, position), whatever process runs them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from datasets.errors import DataError
from datasets.hashing import Key, derive, key_of, uniform
from datasets.images.decode import Format, Pixels

if TYPE_CHECKING:  # loader processes without a transform need not import pydantic
    from datasets.config import TransformConfig

Box = tuple[float, float, float, float]  # left, upper, right, lower


def check_levels(config: TransformConfig, format: Format, random: bool = True) -> None:
    """Raise `DataError` if binary images would be resampled; `random`: as in training, with random crops.

    Levels in between do not exist, and rounding to 0 or 1 moves edges. Images of more levels are rounded to 0..L-1.
    """
    if format.levels != 2 or not _resamples(config, format, random):
        return
    size = f"data.transform.size: [{format.height}, {format.width}]" if format.height else "images of one size"
    raise DataError(
        f"binary images cannot be resampled (values between 0 and 1 do not exist): use {size} without crop: random"
    )


def _resamples(config: TransformConfig, format: Format, random: bool) -> bool:
    """Whether some image is resized or cropped between pixels."""
    height, width = config.size
    if config.crop == "none" or not format.height:
        return config.size != (format.height, format.width)
    moved = random and config.crop == "random" and config.scale != (1, 1)
    return moved or min(format.width / width, format.height / height) != 1


class Transform:
    """Applies a `TransformConfig`. Deterministic (centre crop, no flip) if `seed` is None, as in evaluation."""

    def __init__(self, config: TransformConfig, format: Format, seed: int | None):
        check_levels(config, format, seed is not None)
        self._config = config
        self._highest = format.levels - 1
        self._height, self._width = config.size
        self._key = None if seed is None else key_of(seed, "transform")

    def row_shape(self, channels: int) -> tuple[int, ...]:
        """Shape of an image in a batch."""
        return self._height, self._width, channels

    def least(self, height: int, width: int, position: int) -> tuple[int, int] | None:
        """(height, width) to which an image may be reduced while it is decoded; None: not at all."""
        return None

    def __call__(self, image: Pixels, position: int, size: tuple[int, int] | None = None) -> Pixels:
        """uint8 [height, width, C] from uint8 [H, W, C], for the image at a position; `size` is (H, W)."""
        draws = self._draws(position)
        box = self._box(image.shape[1], image.shape[0], draws)
        if box != (0, 0, self._width, self._height) or image.shape[:2] != self._config.size:
            image = resized(image, self._width, self._height, box, self._highest)
        if self._config.flip and draws is not None and draws[3] < 0.5:
            image = image[:, ::-1]
        return image

    def crop(self, height: int, width: int, position: int) -> Box:
        """The part of an image of that size that is kept, for the image at a position: pixels."""
        return self._box(width, height, self._draws(position))

    def _draws(self, position: int) -> list[float] | None:
        """Four uniform numbers in [0, 1) for a position; None if nothing is random."""
        return None if self._key is None else four_draws(self._key, position)

    def _box(self, width: int, height: int, draws: list[float] | None) -> Box:
        if self._config.crop == "none":
            return 0, 0, width, height
        unit = min(width / self._width, height / self._height)
        left = upper = 0.5
        if self._config.crop == "random" and draws is not None:
            low, high = self._config.scale
            unit *= low + (high - low) * draws[0]
            left, upper = draws[1:3]
        across, down = unit * self._width, unit * self._height
        x, y = left * (width - across), upper * (height - down)
        if unit == 1:
            x, y = round(x), round(y)  # whole pixels: a crop without resampling
        return inside((x, y, x + across, y + down), width, height)


def inside(box: Box, width: int, height: int) -> Box:
    """The part of a box that is inside an image: rounding errors may place a side just outside."""
    left, upper, right, lower = box
    return max(left, 0), max(upper, 0), min(right, width), min(lower, height)


def four_draws(key: Key, position: int) -> list[float]:
    """Four uniform numbers in [0, 1): what is random at a position."""
    draws: list[float] = uniform(derive(derive(key, position), np.arange(4))).tolist()
    return draws


def resized(image: Pixels, width: int, height: int, box: Box, highest: int) -> Pixels:
    """uint8 [height, width, C]: a part of an image with levels 0 to `highest`, by antialiased bicubic interpolation."""
    if box[2] - box[0] == width and box[3] - box[1] == height and float(box[0]).is_integer():
        left, upper = int(box[0]), int(box[1])
        return image[upper : upper + height, left : left + width]
    picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
    found = np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC, box=box))
    if highest < 255:  # bicubic interpolation overshoots
        found = np.minimum(found, highest)
    return found.reshape(height, width, -1)
