"""Conditions as inputs of networks: one vector an image, and captions as a sequence too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from trainer.condition_values import Condition
from trainer.images import ImageSpec
from trainer.networks.conditioning.captions import TextConfig
from trainer.networks.conditioning.classes import ClassConfig
from trainer.networks.conditioning.geometry import GeometryConfig
from trainer.networks.conditioning.sequences import SequenceConfig
from trainer.networks.conditioning.vectors import VectorConfig
from trainer.networks.embedded import Embedded, Text, joined
from trainer.noise import Noise

ConditionConfig = Annotated[
    ClassConfig | VectorConfig | SequenceConfig | GeometryConfig | TextConfig, Field(discriminator="kind")
]


class ConditionEmbedding(nn.ModuleDict):
    """All conditions of a model, by name."""

    def __init__(self, configs: Mapping[str, ConditionConfig], width: int, spec: ImageSpec):
        """Vectors of `width`. Raises ValueError, named by the key, for a condition that the images do not have."""
        modules = {name: config.build(name, width, spec) for name, config in configs.items()}
        super().__init__(modules)
        widths = {module.text_width for module in modules.values()} - {0}
        if len(widths) > 1:
            raise ValueError(f"conditions: text encoders of different widths ({', '.join(map(str, sorted(widths)))})")
        self.text_width: int = max(widths, default=0)

    def forward(self, condition: Condition, noise: Noise) -> Embedded:
        """Names that `condition` lacks are unknown."""
        total: Tensor | None = None
        texts: list[Text] = []
        for name, module in self.items():
            vector, text = module((condition or {}).get(name), noise)
            total = vector if total is None else total + vector
            if text is not None:
                texts.append(text)
        return Embedded(total, joined(texts))


def contained(configs: Mapping[str, ConditionConfig], modules: ConditionEmbedding) -> dict[str, ConditionConfig]:
    """The configurations with all that is needed to rebuild their modules, without any other folder."""
    return {
        name: config.recorded(modules[name])  # type: ignore[arg-type]
        if isinstance(config, TextConfig)
        else config
        for name, config in configs.items()
    }


def rebuilt_as(
    configs: Mapping[str, ConditionConfig], recorded: Mapping[str, ConditionConfig]
) -> dict[str, ConditionConfig]:
    """The configurations with what a run folder has `recorded` of parts that are named by path."""
    found = {}
    for name, config in configs.items():
        other = recorded.get(name)
        both = isinstance(config, TextConfig) and isinstance(other, TextConfig)
        found[name] = config.rebuilt_as(other) if both else config  # type: ignore[union-attr,arg-type]
    return found


__all__ = [
    "ClassConfig",
    "ConditionConfig",
    "ConditionEmbedding",
    "TextConfig",
    "VectorConfig",
    "rebuilt_as",
    "recorded",
]
