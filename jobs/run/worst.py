"""The images of an evaluation with the largest bounds, named by shard and key."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from cluster.storage.errors import StorageError
from datasets.errors import DataError
from datasets.shards.index import Index
from datasets.shards.lookup import SampleName, sample_names
from trainer.training.evaluation import Evaluation

SHARE = 0.1  # of the sum over a set: an image that adds more than this decides the mean


def worst_images(index: Index, evaluation: Evaluation) -> list[dict[str, Any]]:
    """Shard, key, bound and its terms in nats, the largest bound first; without names where the index is unreadable."""
    names = named(index, [image.position for image in evaluation.worst])
    return [name | {"nats": image.nats} | image.terms for name, image in zip(names, evaluation.worst, strict=True)]


def named(index: Index, places: Sequence[int]) -> list[dict[str, Any]]:
    """Shard and key of images by their places in the set; their positions where the index is unreadable."""
    names: list[SampleName] = []
    with contextlib.suppress(DataError, StorageError):
        names = sample_names(index, places)
    return [name._asdict() for name in names] or [{"position": place} for place in places]


def outlier(evaluation: Evaluation, worst: list[dict[str, Any]]) -> str:
    """A line for the user if one image alone decides the mean; else ""."""
    if not worst:
        return ""
    nats, total = worst[0]["nats"], abs(evaluation.nats) * evaluation.images
    if nats - evaluation.nats <= SHARE * total:
        return ""
    share = f"{nats:,.1f} of the {evaluation.nats * evaluation.images:,.1f} nats of all {evaluation.images:,} images"
    return f"one image alone has {share}: {name_of(worst[0])}"


def name_of(image: dict[str, Any]) -> str:
    """An entry of `worst_images` for a message."""
    return f"{image['key']} in {image['shard']}" if "key" in image else f"number {image['position']} of the set"
