"""Whether a set of images fits what a model was, or will be, trained on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from datasets.config import DataConfig
from datasets.loading.transforms import output_format
from datasets.shards.columns import numbers
from datasets.shards.index import Index
from jobs.errors import ConfigError
from trainer.images import ImageSpec
from trainer.models.base import Model, takes_labels


def check_format(spec: ImageSpec, data: DataConfig, index: Index) -> None:
    """Raises ConfigError in one line unless the images of `index`, after `data.transform`, have the size, channels and
    levels of `spec`, the training images. Raises DataError if they differ in size among themselves.
    """
    given = output_format(data, index)
    for name, here, there in (
        ("channels", given.channels, spec.channels),
        ("size", f"{given.height} x {given.width}", f"{spec.height} x {spec.width}"),
        ("levels", given.levels, spec.levels),
    ):
        if here != there:
            raise ConfigError(f"{index.url}: {name} of the images: {here}; of the training images: {there}")


def check_labels(model: Model, index: Index) -> None:
    """Raises ConfigError in one line if `model` is conditioned on labels that mean something else in `index`."""
    if takes_labels(model) and (differs := label_difference(model.spec.classes, model.class_names, index)):
        raise ConfigError(f"{index.url}: {differs}; the model is conditioned on the class")


def label_difference(classes: int, class_names: Sequence[str], index: Index) -> str:
    """How the labels of `index` differ from those of training images of `classes` classes (0: none); "" if they agree.

    Classes may be absent at the end: an index counts up to the largest label.
    """
    if not classes:
        return ""
    if not index.classes:
        return f"the images have no labels; the training images have {classes} classes"
    if index.classes > classes:
        return f"the images have {index.classes} classes, the training images {classes}"
    for number, (here, there) in enumerate(zip(index.meta.class_names, class_names, strict=False)):
        if here != there:
            return f"class {number} is {here!r}; of the training images {there!r}"
    return ""


def warnings(training: Index, other: Index) -> list[str]:
    """What to know about a bound on `other`, of a model trained on `training`, that does not make it wrong."""
    found = []
    if shared := shards_in_common(training, other):
        which = "all" if shared == len(other) else f"{shared:,} of"
        found.append(
            f"{other.url}: {which} {len(other):,} shards are also training shards, so the bound on these images is not "
            "that of unseen images"
        )
    if differs := label_difference(training.classes, training.meta.class_names, other):
        found.append(f"{other.url}: {differs}")
    if training.meta.binarised != other.meta.binarised:
        here, there = (index.meta.binarised or "none" for index in (other, training))
        found.append(f"{other.url}: binarisation of the images: {here}; of the training images: {there}")
    return found


def shards_in_common(one: Index, other: Index) -> int:
    """Number of shards of `other` that `one` has too, under any name: the same keys, sizes and CRCs of all members."""
    theirs, mine = _contents(other), _contents(one)
    likely = np.isin(theirs[:, 0], mine[:, 0])
    known = {tuple(row) for row in mine[np.isin(mine[:, 0], theirs[likely, 0])].tolist()}
    return sum(tuple(row) in known for row in theirs[likely].tolist() if row[1])


def _contents(index: Index) -> NDArray[np.int64]:
    """[shards, 3]: checksum, images and bytes of each shard."""
    columns = [
        [numbers(folder.table.column(name)) for folder in index.folders] for name in ("crc32", "images", "bytes")
    ]
    return np.stack([np.concatenate(parts).astype(np.int64) for parts in columns], axis=1)
