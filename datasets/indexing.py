"""Makes the index of a folder of shards."""

from __future__ import annotations

from collections.abc import Callable

from cluster.storage import Storage
from datasets.errors import DataError
from datasets.index import Meta, Shard, index_shard, write_index


def index_folder(
    url: str,
    location: str,
    levels: int = 256,
    class_names: tuple[str, ...] = (),
    progress: Callable[[int], object] = lambda shards: None,
) -> tuple[Meta, list[Shard]]:
    """Scan every .tar below `url` and write their index to `location`.

    Raises `DataError` in one line that names the shard for anything that is not a whole tar of whole samples.
    """
    folder, target = Storage(url), Storage(location)
    names = [entry.path for entry in folder.list() if entry.path.endswith(".tar") and not _hidden(entry.path)]
    if not names:
        raise DataError(f"{url}: there is no such folder, or no .tar in it")
    shards: list[Shard] = []
    sizes: set[tuple[int, int, int]] = set()
    labels = 0
    for name in names:
        shard, found, classes = index_shard(folder, name, target)
        shards.append(shard)
        sizes |= found
        labels = max(labels, classes)
        progress(1)
    if not sizes:
        raise DataError(f"{url}: its {len(shards)} shards hold no images")
    meta = _meta(sizes, levels, labels, class_names)
    write_index(target, meta, shards)
    return meta, shards


def _hidden(path: str) -> bool:
    return any(part.startswith(".") for part in path.split("/"))


def _meta(sizes: set[tuple[int, int, int]], levels: int, classes: int, class_names: tuple[str, ...]) -> Meta:
    """What the shards say of their images; a height and width of 0 stand for images of different sizes."""
    if class_names and len(class_names) < classes:
        raise DataError(f"{len(class_names)} names of classes, but there are labels up to {classes - 1}")
    channels = max((channels for _, _, channels in sizes), default=1)
    shapes = {(height, width) for height, width, _ in sizes}
    height, width = shapes.pop() if len(shapes) == 1 else (0, 0)
    return Meta(channels, height, width, levels, max(classes, len(class_names)), class_names)
