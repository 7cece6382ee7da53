"""Images of any shape as patches; the random parts are a function of (seed, position), whatever process runs them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from datasets.errors import DataError
from datasets.hashing import key_of
from datasets.images.decode import Format, Pixels
from datasets.images.transform import Box, four_draws, inside, resized

if TYPE_CHECKING:  # loader processes without a transform need not import pydantic
    from datasets.config import PatchesConfig

PLACE = 2  # bytes before the values of a patch: its row and its column, counted from 1; 0: padding
MOST_SIDE = 255  # rows or columns of a grid, so that each fits into a byte
_SMALLEST = 0.25  # share of the patches that the smallest of the smaller grids has
_EXACT = 1e-9  # of a patch: rounding errors of the scale


class Grid(NamedTuple):
    """Rows and columns of patches."""

    rows: int
    columns: int


def grid_of(height: int, width: int, patches: int, patch: int, largest_scale: float) -> Grid:
    """The largest grid of at most `patches` patches that an image of height x width pixels fills while it keeps its
    shape, less than a patch of it being left over, enlarged at most by `largest_scale`.

    At least one patch, for which smaller images are enlarged all the same; of an image with one side more than
    `patches` times the other, or 255 times, a part is left over.
    """

    def at(scale: float) -> Grid:
        return Grid(int(scale * height / patch + _EXACT), int(scale * width / patch + _EXACT))

    area = patch * math.sqrt(
        patches / (height * width)
    )  # the scale at which the image has as many pixels as the patches
    grid = at(min(area, largest_scale))
    while (scale := min((grid.rows + 1) * patch / height, (grid.columns + 1) * patch / width)) <= largest_scale:
        larger = at(scale)
        if larger.rows * larger.columns > patches:
            break
        grid = larger
    rows, columns = max(1, grid.rows), max(1, grid.columns)
    return Grid(min(rows, patches, MOST_SIDE), min(columns, patches // min(rows, patches), MOST_SIDE))


class PatchTransform:
    """Applies a `PatchesConfig`. Deterministic (centre crop, no flip, the largest grid) if `seed` is None."""

    def __init__(self, config: PatchesConfig, format: Format, seed: int | None):
        self._config = config
        self._levels = format.levels
        self._key = None if seed is None else key_of(seed, "transform")

    def row_shape(self, channels: int) -> tuple[int, ...]:
        """Shape of an image in a batch: patches, and bytes of each."""
        return self._config.patches, PLACE + channels * self._config.patch**2

    def __call__(self, image: Pixels, position: int, size: tuple[int, int]) -> Pixels:
        """uint8 [N, 2 + P * P * C] from the image at a position, uint8 [H, W, C], which has `size` where it was not
        reduced: (height, width).

        Each patch has its row and its column, counted from 1, then its values [P, P, C]; the patches are row by row,
        padded with zeros.
        """
        patch, draws = self._config.patch, self._draws(position)
        rows, columns = self._grid(*size, draws)
        left, upper, right, lower = self._box(*size, rows, columns, draws)
        down, across = image.shape[0] / size[0], image.shape[1] / size[1]
        box = inside((left * across, upper * down, right * across, lower * down), image.shape[1], image.shape[0])
        image = resized(image, columns * patch, rows * patch, box, self._levels - 1)
        if self._config.flip and draws is not None and draws[3] < 0.5:
            image = image[:, ::-1]
        count, channels = rows * columns, image.shape[2]
        row = np.zeros(self.row_shape(channels), dtype=np.uint8)
        row[:count, 0] = np.arange(1, rows + 1).repeat(columns)
        row[:count, 1] = np.tile(np.arange(1, columns + 1), rows)
        values = image.reshape(rows, patch, columns, patch, channels).transpose(0, 2, 1, 3, 4)
        row[:count, PLACE:] = values.reshape(count, -1)
        return row

    def grid(self, height: int, width: int, position: int) -> Grid:
        """The grid of an image of a size, at a position."""
        return self._grid(height, width, self._draws(position))

    def crop(self, height: int, width: int, position: int) -> Box:
        """The part of an image of a size that is kept, at a position: pixels."""
        draws = self._draws(position)
        return self._box(height, width, *self._grid(height, width, draws), draws)

    def least(self, height: int, width: int, position: int) -> tuple[int, int] | None:
        """(height, width) to which an image of a size may be reduced while it is decoded; None: not at all."""
        if self._levels < 256:
            return None
        draws = self._draws(position)
        grid = self._grid(height, width, draws)
        left, upper, right, lower = self._box(height, width, *grid, draws)
        patch = self._config.patch
        return (
            math.ceil(height * grid.rows * patch / (lower - upper)),
            math.ceil(width * grid.columns * patch / (right - left)),
        )

    def _draws(self, position: int) -> list[float] | None:
        """Four uniform numbers in [0, 1) for a position; None if nothing is random."""
        return None if self._key is None else four_draws(self._key, position)

    def _grid(self, height: int, width: int, draws: list[float] | None) -> Grid:
        config = self._config
        patches, largest = config.patches, max(1.0, config.min_side / min(height, width))
        if self._levels == 2:
            return _exact_grid(height, width, patches, config.patch)
        if draws is not None and draws[0] < config.smaller:
            patches = max(1, round(patches * (_SMALLEST + (1 - _SMALLEST) * draws[0] / config.smaller)))
        return grid_of(height, width, patches, config.patch, largest)

    def _box(self, height: int, width: int, rows: int, columns: int, draws: list[float] | None) -> Box:
        tall, wide = rows * self._config.patch, columns * self._config.patch
        unit = 1.0 if self._levels == 2 else min(width / wide, height / tall)
        left, upper = (0.5, 0.5) if draws is None else draws[1:3]
        x, y = left * (width - unit * wide), upper * (height - unit * tall)
        if unit == 1:
            x, y = round(x), round(y)  # whole pixels: a crop without resampling
        return inside((x, y, x + unit * wide, y + unit * tall), width, height)


def _exact_grid(height: int, width: int, patches: int, patch: int) -> Grid:
    """The grid of a binary image, which cannot be resampled: values between 0 and 1 do not exist."""
    rows, columns = height // patch, width // patch
    if not 1 <= rows * columns <= patches or max(rows, columns) > MOST_SIDE:
        raise DataError(
            f"the image is {width} x {height}, {columns} x {rows} patches of {patch} pixels, and binary images cannot "
            f"be resampled: 1 to {patches} are allowed (data.transform.patches)"
        )
    return Grid(rows, columns)
