"""The conditions of a set as its configuration asks for them, checked against what its samples have."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from datasets.conditions.captions import TextCondition, caption_of
from datasets.conditions.classes import ClassCondition
from datasets.conditions.condition import Condition
from datasets.conditions.config import ClassConfig, GeometryConfig, SequenceConfig, TextConfig, VectorConfig
from datasets.conditions.geometry import GeometryCondition
from datasets.conditions.sequences import SequenceCondition
from datasets.conditions.vectors import VectorCondition
from datasets.config import DataConfig
from datasets.errors import DataError
from datasets.images.patches import PatchTransform
from datasets.images.transform import Transform
from datasets.order.order import Range
from datasets.reading.shard_reader import ShardReader, image_crcs
from datasets.shards.columns import extensions_of
from datasets.shards.index import Index
from datasets.shards.json_fields import split_source

_LOOKED_AT = 8  # shards, and samples of each, in which a member or field must occur


def conditions_of(
    config: DataConfig,
    index: Index,
    tokenizers: Mapping[str, str],
    seed: int | None,
    transform: Transform | PatchTransform | None = None,
) -> tuple[Condition, ...]:
    """What images of `index` are conditioned on; without `data.conditions` the `label`, if the set has classes.

    `tokenizers`: the contents of a tokenizer.json for each text condition. `seed`: of the choice between captions.
    """
    if not config.conditions:
        return (_classes("label", index),) if index.classes else ()
    found: list[Condition] = []
    for name, given in config.conditions.items():
        match given:
            case ClassConfig():
                found.append(_classes(name, index))
            case TextConfig():
                if (tokenizer := tokenizers.get(name)) is None:
                    continue  # a model that does not take this caption
                found.append(
                    TextCondition(
                        name, given.members, given.shares, given.max_tokens, tokenizer, given.missing, seed or 0
                    )
                )
            case VectorConfig():
                found.append(VectorCondition(name, given.member, given.size, given.missing == "bad"))
            case SequenceConfig():
                found.append(SequenceCondition(name, given.member, given.size, given.max_tokens))
            case GeometryConfig():
                found.append(GeometryCondition(name, transform))
    return tuple(found)


def _classes(name: str, index: Index) -> ClassCondition:
    meta = index.meta
    return ClassCondition(name, index.classes, meta.labels, meta.class_names if meta.labels.named else ())


def kinds_of(config: DataConfig, index: Index) -> dict[str, str]:
    """The kind of each condition that `conditions_of` finds, by name."""
    if not config.conditions:
        return {"label": "class"} if index.classes else {}
    return {name: given.kind for name, given in config.conditions.items()}


def check_conditions(config: DataConfig, index: Index) -> None:
    """Raises DataError if the set does not have what `data.conditions` names, as far as its first shards tell."""
    for name, given in config.conditions.items():
        match given:
            case ClassConfig():
                if not index.classes:
                    why = index.labels_differ or f"{index.url}: its samples have no label ({index.meta.labels.shown})"
                    raise DataError(f"data.conditions.{name}: {why}")
            case TextConfig():
                for source in given.members:
                    _check_source(name, source, index)
            case VectorConfig() | SequenceConfig():
                _check_member(name, given.member, index)
            case GeometryConfig():
                pass


def _check_source(name: str, source: str, index: Index) -> None:
    extension, path = split_source(source)
    shard = _check_member(name, extension, index)
    if not path:
        return
    reader = ShardReader(index, members=(extension,))
    held = reader.read(Range(shard, 0, min(_LOOKED_AT, int(index.counts[shard]))))
    for row in range(held.rows.stop):
        data = reader.member(held, row, extension)
        if data is not None and caption_of(data, source).problem in ("", "empty"):
            return
    key = reader.where(held, 0)[1]
    raise DataError(f"data.conditions.{name}: {index.where(shard)}: sample {key!r}: its .json has no text {source!r}")


def _check_member(name: str, extension: str, index: Index) -> int:
    """The first shard that has members with an extension."""
    seen: set[str] = set()
    joined = extension in index.joins.extensions
    for shard in range(min(_LOOKED_AT, len(index))):
        own = extensions_of(index.members(shard))
        if extension in own and joined:
            raise DataError(
                f"data.conditions.{name}: .{extension} is a member of {index.where(shard)} and in data.columns"
            )
        if extension in own:
            return shard
        seen |= index.extensions(shard)
    if joined:
        try:
            index.joins.check(extension, partial(image_crcs, index))
        except DataError as error:
            raise DataError(f"data.conditions.{name}: {error}") from error
        return 0
    listed = ", ".join(sorted(seen))
    raise DataError(f"data.conditions.{name}: {index.url}: its samples have no member .{extension}; they have {listed}")
