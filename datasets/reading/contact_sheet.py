"""A contact sheet: random images of a set in one picture."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageDraw

from datasets.errors import DataError
from datasets.hashing import derive, key_of
from datasets.images.decode import Pixels
from datasets.order.order import Range
from datasets.reading.shard_reader import ShardReader
from datasets.shards.index import Index

_SIDE, _GAP = 128, 4  # pixels of a tile, and between tiles


def contact_sheet(index: Index, images: int, seed: int = 0) -> tuple[bytes, list[str]]:
    """A PNG of `images` random images, scaled into tiles in rows, and why some of them cannot be shown.

    Tiles are in the order of the shards. An image that does not decode is a crossed tile.
    """
    places = _random_places(index.images, images, seed)
    bounds = np.concatenate([[0], np.cumsum(index.counts)])
    columns = int(np.ceil(np.sqrt(len(places))))
    rows = -(-len(places) // columns)
    pitch = _SIDE + _GAP
    sheet = Image.new("RGB", (columns * pitch + _GAP, rows * pitch + _GAP), "white")
    reader, bad = ShardReader(index), []
    for number, place in enumerate(places.tolist()):
        shard = int(np.searchsorted(bounds, place, side="right")) - 1
        row = place - int(bounds[shard])
        held = reader.read(Range(shard, row, row + 1))
        try:
            tile = _tile(reader.decode(held, 0, index.format), index.levels)
        except DataError as error:
            url, key = reader.where(held, 0)
            bad.append(f"{url}: sample {key!r}: {error}")
            tile = _crossed()
        left, top = (_GAP + pitch * at for at in (number % columns, number // columns))
        sheet.paste(tile, (left + (_SIDE - tile.width) // 2, top + (_SIDE - tile.height) // 2))
    stream = io.BytesIO()
    sheet.save(stream, "PNG")
    return stream.getvalue(), bad


def _random_places(total: int, wanted: int, seed: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Different numbers below `total`, ascending: `wanted` of them, or all."""
    if wanted >= total:
        return np.arange(total)
    drawn: set[int] = set()
    counter = 0
    while len(drawn) < wanted:
        more = derive(key_of(seed, "contact sheet"), np.arange(counter, counter + wanted)) % np.uint64(total)
        counter += wanted
        drawn.update(more.tolist()[: wanted - len(drawn)])
    return np.array(sorted(drawn), dtype=np.int64)


def _tile(pixels: Pixels, levels: int) -> Image.Image:
    if levels < 256:
        pixels = (pixels.astype(np.uint16) * 255 // (levels - 1)).astype(np.uint8)
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels[:, :, :3]).convert("RGB")
    scale = _SIDE / max(picture.size)
    width, height = (max(1, round(length * scale)) for length in picture.size)
    sharp = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS  # small images show their pixels
    return picture.resize((width, height), sharp)


def _crossed() -> Image.Image:
    tile = Image.new("RGB", (_SIDE, _SIDE), "lightgrey")
    draw = ImageDraw.Draw(tile)
    draw.line((0, 0, _SIDE, _SIDE), fill="red", width=3)
    draw.line((0, _SIDE, _SIDE, 0), fill="red", width=3)
    return tile
