"""Grids of images as PNG files."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from trainer.condition_values import map_value
from trainer.distributed.device import full_precision
from trainer.images import GAP_LEVEL, ImageSpec, pictured
from trainer.models.base import Model, condition
from trainer.noise import Noise
from trainer.patches import whole_images
from trainer.tracking.captions import as_metadata

if TYPE_CHECKING:
    from trainer.training.data import Batch

SIDE = 48  # pixels; smaller images are enlarged by an integer factor to about this
CAPTION = 26  # pixels, the height of a name


def grid(
    images: Tensor,
    spec: ImageSpec,
    columns: int | None = None,
    caption: str = "",
    cell: tuple[int, int] | None = None,
) -> bytes:
    """A PNG of images (a batch of `spec`) in rows of `columns` (about a square if None), with a caption.

    Images of several shapes are in the middle of cells of `cell` = (height, width) pixels; None: of the largest height
    and width among them.
    """
    columns = columns or math.ceil(math.sqrt(len(images)))
    whole = whole_images(images.cpu(), spec)
    cell = cell or cell_of(whole)
    factor = max(1, SIDE // max(cell))
    tiles = [
        pictured(image[None], spec.levels)[0].repeat_interleave(factor, 1).repeat_interleave(factor, 2)
        for image in whole
    ]
    channels, rows = tiles[0].shape[0], math.ceil(len(images) / columns)
    beside = tiles[0].shape[2] - factor * whole[0].shape[2]  # of several channels side by side
    height, width = factor * cell[0] + 2, factor * cell[1] + beside + 2  # a gap of two pixels
    canvas = torch.full((channels, rows * height + 2, columns * width + 2), GAP_LEVEL, dtype=torch.uint8)
    for i, image in enumerate(tiles):
        y = (i // columns) * height + 2 + (height - 2 - image.shape[1]) // 2
        x = (i % columns) * width + 2 + (width - 2 - image.shape[2]) // 2
        canvas[:, y : y + image.shape[1], x : x + image.shape[2]] = image
    array = canvas.permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    picture = Image.fromarray(array[:, :, 0] if channels == 1 else array)
    picture.save(buffer, format="PNG", pnginfo=as_metadata(caption))
    return buffer.getvalue()


def cell_of(images: Sequence[Tensor]) -> tuple[int, int]:
    """The largest height and the largest width of images [C, H, W]."""
    return max(image.shape[1] for image in images), max(image.shape[2] for image in images)


@torch.no_grad()
def draw(model: Model, examples: Batch | None, count: int, seed: int) -> dict[str, bytes]:
    """The pictures of a model with averaged weights as PNG files by name: `count` samples, and reconstructions of at
    most half as many held-out `examples`. Computed in full float32.
    """
    if count == 0:
        return {}
    shown, given = None, None
    if examples is not None and count > 1 and (real := examples.weights > 0).any():
        rows = real.nonzero()[: count // 2, 0]
        shown, given = examples.images[rows], condition(model, examples.conditions)
        given = given and {name: map_value(lambda column: column[rows], value) for name, value in given.items()}
    device = next(model.parameters()).device
    noise = Noise(seed, "sample", torch.arange(count, device=device))
    training = model.training
    model.eval()
    try:
        with full_precision(device):
            pictures = model.pictures(shown, given, noise)
    finally:
        model.train(training)
    return {
        name: grid(picture.images, model.spec, picture.columns, f"{picture.of or name}, averaged weights")
        for name, picture in pictures.items()
    }


def captioned_rows(rows: dict[str, Tensor], spec: ImageSpec, columns: int) -> bytes:
    """A PNG of several grids of `columns` images, stacked, each below its name."""
    grids = {name: Image.open(io.BytesIO(grid(images, spec, columns))).convert("RGB") for name, images in rows.items()}
    width = max(picture.width for picture in grids.values())
    height = sum(picture.height + CAPTION for picture in grids.values())
    canvas = Image.new("RGB", (width, height), "white")
    pen, y = ImageDraw.Draw(canvas), 0
    for name, picture in grids.items():
        pen.text((4, y + 3), name, fill="black", font=ImageFont.load_default(CAPTION - 8))
        canvas.paste(picture, (0, y + CAPTION))
        y += CAPTION + picture.height
    buffer = io.BytesIO()
    canvas.save(buffer, format="PNG")
    return buffer.getvalue()
