"""The format of a data set's images: shape, levels, and the scale on which networks see them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from trainer.condition_values import TextSpec
from trainer.patches import PLACE, Patches

GAP_LEVEL = 96  # grey between pictures, of 0 .. 255


class PatchSpec(NamedTuple):
    """Images of any shape, in patches: see `trainer.patches`."""

    most: int  # N: patches of an image at most
    side: int  # P: height and width of a patch, pixels
    grids: tuple[tuple[int, int, int], ...] = ()
    """(rows, columns, images) of the training set, the most frequent first: the shapes of samples."""


class ImageSpec(NamedTuple):
    """Shape and values of a model's images. `levels` is the number L of values of a channel of a pixel."""

    channels: int
    height: int
    width: int
    levels: int = 256  # 256 for 8 bit, 17 for the digit scans, 2 for binary images
    classes: int = 0  # 0: the images have no labels
    texts: tuple[TextSpec, ...] = ()  # the captions that a model may be conditioned on
    patches: PatchSpec | None = None  # images of any shape, whose `height` and `width` are 0; None: of one size

    @classmethod
    def from_json(cls, facts: dict[str, Any]) -> ImageSpec:
        """The inverse of `_asdict` through JSON. Raises TypeError or ValueError for other fields."""
        texts = tuple(TextSpec(*text) for text in facts.get("texts", ()))
        patches = facts.get("patches")
        if patches is not None:
            most, side, grids = patches
            patches = PatchSpec(most, side, tuple((rows, columns, images) for rows, columns, images in grids))
        return cls(**facts | {"texts": texts, "patches": patches})

    def text(self, name: str) -> TextSpec:
        """The captions called `name`. Raises ValueError if the images have none."""
        for text in self.texts:
            if text.name == name:
                return text
        raise ValueError(f"conditions.{name}: the images have no captions of this name; declare data.conditions.{name}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width); of images in patches that of their strip (`trainer.patches`)."""
        if self.patches is not None:
            return self.channels, self.patches.most * self.patches.side, self.patches.side
        return self.channels, self.height, self.width

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Shape of an image in a batch: (channels, height, width), or (patches, bytes of each)."""
        if self.patches is not None:
            return self.patches.most, PLACE + self.channels * self.patches.side**2
        return self.shape

    @property
    def dimensions(self) -> int:
        """D, the number of values in an image: the divisor of bits per dimension. Of images in patches the largest."""
        channels, height, width = self.shape
        return channels * height * width

    def dimensions_of(self, images: Tensor) -> Tensor:
        """float64 [B]: D of each image of a batch; 0 for padding in patches."""
        if self.patches is None:
            return torch.full((len(images),), float(self.dimensions), dtype=torch.float64, device=images.device)
        return Patches.of_images(images).counts.double() * (self.channels * self.patches.side**2)

    def scaled(self, levels: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Levels v in 0..L-1 to x = 2 (v + 1/2) / L - 1 in (-1, 1); but x = -1, +1 where L = 2. Any shape.

        The result is contiguous: the memory format of the weights alone decides that of the convolutions.
        """
        v = levels.to(dtype, memory_format=torch.contiguous_format)
        return 2 * v - 1 if self.levels == 2 else (2 * v + 1) / self.levels - 1

    def nearest_level(self, x: Tensor) -> Tensor:
        """The inverse of `scaled`, rounded to the nearest level and clamped: uint8, any shape."""
        v = (x + 1) / 2 if self.levels == 2 else ((x + 1) * self.levels - 1) / 2
        return v.round().clamp(0, self.levels - 1).to(torch.uint8)

    def cell_centre(self, levels: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """The centre 2 (v + 1/2) / L - 1 of a level's cell of width 2 / L, for any L. Any shape."""
        return (2 * levels.to(dtype) + 1) / self.levels - 1

    def nearest_cell(self, x: Tensor) -> Tensor:
        """The level whose cell contains x: uint8, any shape."""
        return ((x + 1) * self.levels / 2).floor().clamp(0, self.levels - 1).to(torch.uint8)


def visible(images: Tensor, levels: int) -> Tensor:
    """The levels 0 .. `levels` - 1 as 0 .. 255, uint8, any shape."""
    return (images.float() * (255 / (levels - 1))).round().to(torch.uint8)


def pictured(images: Tensor, levels: int, gap: int = 1) -> Tensor:
    """Images (levels [N, C, H, W]) as 0 .. 255, uint8 [N, 1 or 3, H, W']: in colour where C = 3, else every channel in
    grey, side by side with `gap` pixels between: two and four channels are no transparency.
    """
    shown = visible(images, levels)
    channels = shown.shape[1]
    if channels in (1, 3):
        return shown
    spaced = torch.nn.functional.pad(shown, (0, gap), value=GAP_LEVEL)  # [N, C, H, W + gap]
    return spaced.permute(0, 2, 1, 3).flatten(2)[:, None, :, : -gap or None]
