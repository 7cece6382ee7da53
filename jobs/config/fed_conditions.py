"""Whether the data feed every condition that a model is to be trained with."""

from __future__ import annotations

from typing import Any

from datasets.conditions.config import SequenceConfig, VectorConfig
from datasets.config import DataConfig
from datasets.loading.conditions import kinds_of
from datasets.shards.index import Index
from jobs.errors import ConfigError
from trainer.models.base import ModelConfigBase


def check_fed(model: ModelConfigBase, data: DataConfig, index: Index) -> None:
    """Raises ConfigError in one line for a condition of the model that the training images do not have, or have of
    another kind: it would stay unknown for ever, and the model unconditional.
    """
    fed = kinds_of(data, index)
    for name in model.columns:
        if fed.get(name) != "vector":
            raise ConfigError(f"model.latents: data.conditions.{name} is not there, or of another kind than vector")
    wanted: Any = model
    for part in model.CONDITIONS.split("."):
        wanted = getattr(wanted, part, {})
    for name, condition in wanted.items():
        key = f"model.{model.CONDITIONS}.{name}"
        if name not in fed:
            has = ", ".join(f"{other} ({kind})" for other, kind in fed.items())
            unlabelled = index.labels_differ or "the images have no labels"
            given = f"they have {has}" if fed else f"{unlabelled}, and data.conditions is empty"
            raise ConfigError(f"{key}: nothing in the data feeds this condition; {given}: {index.url}")
        if condition.kind != fed[name]:
            raise ConfigError(f"{key}.kind: is {condition.kind}; {name} of the data is of kind {fed[name]}")
        if condition.kind == "class" and condition.classes and condition.classes < index.classes:
            raise ConfigError(f"{key}.classes: {condition.classes}; the data has {index.classes} classes: {index.url}")
        read = data.conditions.get(name)
        if isinstance(read, VectorConfig | SequenceConfig) and condition.size != read.size:
            raise ConfigError(f"{key}.size: {condition.size}; data.conditions.{name}.size is {read.size}")
