"""Decoding in parts, where memory is short: some images at once, or rectangles of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from trainer.models.latent.first_stages import FirstStage
from trainer.noise import Noise

OVERLAP = 4  # neighbouring tiles share 1 / OVERLAP of their sides, over which they are blended linearly


def decode_in_parts(stage: FirstStage, z: Tensor, noise: Noise, rows: int | None, tile: int | None) -> Tensor:
    """The parameters of p(x | z) for z [B, *stage.shape].

    `rows`: images at once, which changes nothing but rounding. `tile`: height and width of the rectangles of z that are
    decoded one after another; the decoder's normalisation and attention then see a part of the image only, so that
    images differ a little.
    """
    outputs = []
    for first in range(0, len(z), rows or len(z)):
        part = slice(first, first + (rows or len(z)))
        own = replace(noise, positions=noise.positions[part])
        if tile is None or tile >= max(z.shape[2:]):
            outputs.append(stage.decode(z[part], own).output)
        else:
            outputs.append(_decode_tiles(stage, z[part], own, tile))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def check_tile(stage: FirstStage, tile: int | None) -> None:
    """Raises ValueError if the first stage cannot decode in tiles of this size."""
    if tile is None:
        return
    if not stage.takes_tiles:
        raise ValueError("tile: this first stage does not decode parts of an image; leave it out and use decode_rows")
    if tile < OVERLAP:
        raise ValueError(f"tile: is {tile}, at least {OVERLAP}")


def _decode_tiles(stage: FirstStage, z: Tensor, noise: Noise, tile: int) -> Tensor:
    up = stage.spec.height // stage.shape[1]
    total: Tensor | None = None
    weights = z.new_zeros(stage.spec.height, stage.spec.width)
    for row in _starts(z.shape[2], tile):
        for column in _starts(z.shape[3], tile):
            part = z[:, :, row : row + tile, column : column + tile]
            output = stage.decode(part, noise).output
            if total is None:
                total = output.new_zeros(*output.shape[:2], stage.spec.height, stage.spec.width)
            place = slice(up * row, up * row + output.shape[2]), slice(up * column, up * column + output.shape[3])
            weight = _ramp(output.shape[2], up * tile, z)[:, None] * _ramp(output.shape[3], up * tile, z)
            total[:, :, *place] += weight * output
            weights[place] += weight
    assert total is not None
    return total / weights


def _starts(size: int, tile: int) -> Iterator[int]:
    """The first rows of tiles that cover `size` rows."""
    step = tile - tile // OVERLAP
    for start in range(0, size, step):
        if start + tile >= size:
            yield max(0, size - tile)
            return
        yield start


def _ramp(size: int, tile: int, like: Tensor) -> Tensor:
    """[size]: weights that rise from an edge over the overlap and fall towards the other."""
    distance = torch.arange(size, device=like.device, dtype=like.dtype)
    distance = torch.minimum(distance, distance.flip(0)) + 1
    return (distance / (tile // OVERLAP)).clamp(max=1)
