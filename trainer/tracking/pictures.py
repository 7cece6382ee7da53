"""Grids of images as PNG files."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from trainer.condition_values import map_value
from trainer.distributed.device import full_precision
from trainer.images import GAP_LEVEL, ImageSpec, pictured
from trainer.models.base import Model, condition
from trainer.noise import Noise
from trainer.tracking.captions import as_metadata

if TYPE_CHECKING:
    from trainer.training.data import Batch

SIDE = 48  # pixels; smaller images are enlarged by an integer factor to about this
CAPTION = 26  # pixels, the height of a name


def grid(images: Tensor, spec: ImageSpec, columns: int | None = None, caption: str = "") -> bytes:
    """A PNG of images (uint8 levels [N, C, H, W]) in rows of `columns` (about a square if None), with a caption."""
    columns = columns or math.ceil(math.sqrt(len(images)))
    scaled = pictured(images, spec.levels).cpu()
    channels = scaled.shape[1]
    factor = max(1, SIDE // max(spec.height, spec.width))
    scaled = scaled.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    rows = math.ceil(len(images) / columns)
    height, width = scaled.shape[2] + 2, scaled.shape[3] + 2  # a gap of two pixels
    canvas = torch.full((channels, rows * height + 2, columns * width + 2), GAP_LEVEL, dtype=torch.uint8)
    for i, image in enumerate(scaled):
        y, x = (i // columns) * height + 2, (i % columns) * width + 2
        canvas[:, y : y + image.shape[1], x : x + image.shape[2]] = image
    array = canvas.permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    picture = Image.fromarray(array[:, :, 0] if channels == 1 else array)
    picture.save(buffer, format="PNG", pnginfo=as_metadata(caption))
    return buffer.getvalue()


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
