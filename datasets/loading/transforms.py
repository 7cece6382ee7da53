"""What `data.transform` makes of the images of a set: their format in a batch, and the grids of those in patches."""

from __future__ import annotations

from collections import Counter

import numpy as np

from datasets.config import DataConfig, PatchesConfig, TransformConfig
from datasets.errors import DataError
from datasets.images.decode import Format
from datasets.images.patches import Grid, PatchTransform
from datasets.images.transform import Transform, check_levels
from datasets.shards.columns import numbers
from datasets.shards.index import Index

_LOOKED_AT = 16  # shards whose images' sizes stand for those of all


def output_format(config: DataConfig, index: Index) -> Format:
    """The format of a run's images: the index's, with the size of `data.transform`; 0 x 0 for patches of images of any
    shape. Raises `DataError`.
    """
    match config.transform:
        case PatchesConfig():
            return index.format._replace(height=0, width=0)
        case TransformConfig(size=(height, width)):
            check_levels(config.transform, index.format)
            return index.format._replace(height=height, width=width)
    if not index.height:
        where = index.odd_shard()
        raise DataError(
            f"{where}: images differ in size, here or between shards; set data.transform.size: [height, width], "
            "or for a diffusion transformer data.transform.patches, which keeps their shapes"
        )
    return index.format


def transform_of(config: DataConfig, format: Format, seed: int | None) -> Transform | PatchTransform | None:
    """What is applied to each image of a format; deterministic if `seed` is None. Raises `DataError`."""
    match config.transform:
        case PatchesConfig():
            return PatchTransform(config.transform, format, seed)
        case TransformConfig():
            return Transform(config.transform, format, seed)
    return None


def grids_of(config: PatchesConfig, index: Index) -> dict[Grid, int]:
    """How many images of a set have each grid of patches in evaluation, the most frequent first; of a set of more than
    16 shards, in 16 shards spread evenly. Raises `DataError` if an index does not list the sizes of the images.
    """
    transform = PatchTransform(config, index.format, None)
    counts: Counter[Grid] = Counter()
    if index.height:
        return {transform.grid(index.height, index.width, 0): index.images}
    full = np.flatnonzero(index.counts)
    chosen = full[np.unique(np.linspace(0, len(full) - 1, min(len(full), _LOOKED_AT)).astype(np.int64))]
    for shard in chosen.tolist():
        table = index.columns(shard)
        sizes = np.stack([numbers(table.column(name)) for name in ("height", "width")], 1)
        unique, images = np.unique(sizes, axis=0, return_counts=True)
        for (height, width), count in zip(unique.tolist(), images.tolist(), strict=True):
            counts[transform.grid(height, width, 0)] += count
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
