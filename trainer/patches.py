"""Images of any shape as patches: how a batch of them travels, and where each patch belongs.

Such a batch is uint8 [B, N, 2 + P * P * C]: of each patch its row and its column in the image, counted from 1, and its
levels [P, P, C]; padding is zero. So shapes travel with the images, and nothing between the loader and the model has to
know of them. A model looks at the patches as strips [B, C, N * P, P], one below the other, to which everything applies
that works pixel by pixel; sums leave padding out (`sum_over_image`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from trainer.images import ImageSpec

PLACE = 2  # bytes of a patch before its levels


class Patches(NamedTuple):
    """Where the patches of a batch belong. Padding has row and column 0."""

    rows: Tensor  # int64 [B, N]
    columns: Tensor  # int64 [B, N]
    present: Tensor  # bool [B, N]: false for padding

    @classmethod
    def of_images(cls, images: Tensor) -> Patches:
        """From a batch uint8 [B, N, 2 + P * P * C]."""
        rows, columns = images[..., 0].long(), images[..., 1].long()
        return cls((rows - 1).clamp(min=0), (columns - 1).clamp(min=0), rows > 0)

    @classmethod
    def of_grids(cls, rows: Tensor, columns: Tensor, most: int) -> Patches:
        """From the numbers of rows and columns of images, int64 [B] each, padded to `most` patches."""
        number = torch.arange(most, device=rows.device)
        present = number < (rows * columns)[:, None]
        row = torch.where(present, number // columns[:, None], 0)
        return cls(row, torch.where(present, number % columns[:, None], 0), present)

    @property
    def counts(self) -> Tensor:
        """int64 [B]: patches of each image."""
        return self.present.sum(1)

    @property
    def attended(self) -> Tensor:
        """bool [B, N]: the patches to attend to; of an image without any the first, so that no softmax is empty."""
        first = torch.arange(self.present.shape[1], device=self.present.device) == 0
        return self.present | (first & ~self.present.any(1, keepdim=True))

    def pixels(self, side: int) -> Tensor:
        """bool [B, 1, N * side, 1]: false for the padding of a strip."""
        return self.present.repeat_interleave(side, 1)[:, None, :, None]

    def elements(self, channels: int, side: int) -> tuple[Tensor, Tensor]:
        """int64 [B, channels, N * side, side]: the index of each value of a strip in its image [channels, H, W],
        flattened; 0 for padding. And int64 [B]: values of each image.
        """
        grid_rows, grid_columns = ((place.amax(1) + 1)[:, None, None, None] for place in (self.rows, self.columns))
        height, width = grid_rows * side, grid_columns * side
        inner = torch.arange(side, device=self.rows.device)
        y = (self.rows[:, :, None] * side + inner).flatten(1)[:, None, :, None]  # [B, 1, N * side, 1]
        x = (self.columns[:, :, None] * side)[:, :, None].expand(-1, -1, side, -1).flatten(1, 2)[:, None] + inner
        channel = torch.arange(channels, device=self.rows.device)[:, None, None]
        index = (channel * height + y) * width + x
        return torch.where(self.pixels(side), index, 0), self.counts * (channels * side * side)


def sum_over_image(values: Tensor, patches: Patches | None) -> Tensor:
    """[B]: the sum of [B, ...] over all but the batch; of strips without their padding."""
    if patches is not None:
        values = torch.where(patches.pixels(values.shape[-1]), values, 0)
    return values.flatten(1).sum(1)


def strips(images: Tensor, spec: ImageSpec) -> Tensor:
    """The levels of a batch uint8 [B, N, 2 + P * P * C] as strips uint8 [B, C, N * P, P]."""
    assert spec.patches is not None
    most, side = spec.patches[:2]
    levels = images[..., PLACE:].reshape(-1, most, side, side, spec.channels)
    return levels.permute(0, 4, 1, 2, 3).reshape(-1, spec.channels, most * side, side)


def as_batch(levels: Tensor, patches: Patches) -> Tensor:
    """The inverse of `strips`: a batch uint8 [B, N, 2 + P * P * C] of strips uint8 [B, C, N * P, P]."""
    side = levels.shape[-1]
    values = levels.unflatten(2, (-1, side)).permute(0, 2, 3, 4, 1).flatten(2)  # [B, N, P * P * C]
    places = torch.stack([patches.rows, patches.columns], -1) + 1
    batch = torch.cat([places.to(torch.uint8), values], -1)
    return torch.where(patches.present[..., None], batch, 0)


def whole_images(images: Tensor, spec: ImageSpec) -> list[Tensor]:
    """The images of a batch, uint8 levels [C, H, W] each: of their own shape where they are in patches."""
    if spec.patches is None:
        return list(images)
    found, side = [], spec.patches.side
    for image, levels in zip(images, strips(images, spec), strict=True):
        rows, columns = image[:, :PLACE].amax(0).tolist()
        tiles = levels[:, : rows * columns * side].reshape(spec.channels, rows, columns, side, side)
        found.append(tiles.transpose(2, 3).reshape(spec.channels, rows * side, columns * side))
    return found


def by_shape(images: Tensor, spec: ImageSpec) -> list[tuple[Tensor, Tensor]]:
    """(numbers int64 [n], images [n, C, H, W]) for each shape in a batch; without images that have no patch."""
    if spec.patches is None:
        return [(torch.arange(len(images)), images)]
    shapes: dict[tuple[int, int], list[int]] = {}
    whole = whole_images(images, spec)
    for number, image in enumerate(whole):
        shapes.setdefault((image.shape[1], image.shape[2]), []).append(number)
    return [
        (torch.tensor(numbers), torch.stack([whole[i] for i in numbers]))
        for shape, numbers in shapes.items()
        if all(shape)
    ]


def grid_for(spec: ImageSpec, size: tuple[int, int]) -> tuple[int, int]:
    """(rows, columns) of images of (height, width) pixels. Raises ValueError if the images have no such size."""
    height, width = size
    if spec.patches is None:
        raise ValueError(f"size: all images of the model are {spec.height} x {spec.width}")
    most, side = spec.patches[:2]
    if height % side or width % side or min(size) < 1:
        raise ValueError(f"size: {height} x {width}: height and width are multiples of the patch, {side}")
    rows, columns = height // side, width // side
    if rows * columns > most or max(rows, columns) > 255:
        raise ValueError(
            f"size: {height} x {width}: has {rows * columns} patches; the model has images of up to {most}"
        )
    return rows, columns


def sampled_grids(spec: ImageSpec, uniform: Tensor, size: tuple[int, int] | None) -> Patches:
    """The patches of new images of one size, or of the shapes of the training set in proportion, by numbers `uniform`
    in [0, 1), [B].
    """
    assert spec.patches is not None
    most, known = spec.patches.most, spec.patches.grids
    if size is not None:
        known = ((*grid_for(spec, size), 1),)
    elif not known:
        square = max(1, int(most**0.5))
        known = ((square, square, 1),)
    table = torch.tensor(known, device=uniform.device)
    ends = table[:, 2].double().cumsum(0)
    chosen = table[torch.searchsorted(ends, uniform.double() * ends[-1], right=True).clamp(max=len(table) - 1)]
    return Patches.of_grids(chosen[:, 0], chosen[:, 1], most)
