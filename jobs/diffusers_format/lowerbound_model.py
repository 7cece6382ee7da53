"""The component `model` of a folder in diffusers' layout: a model of lowerbound, whose packages must be importable."""

from __future__ import annotations

from typing import Any

from diffusers import ConfigMixin, ModelMixin


class LowerboundModel(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Reads an export of lowerbound: config.json and model.safetensors."""

    config_name = "lowerbound.json"

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    @classmethod
    def from_pretrained(cls, path: str, **options: Any) -> LowerboundModel:
        """`options` of diffusers that say how weights are read have no effect."""
        try:
            import trainer
        except ImportError as error:
            raise ImportError(
                "this folder needs the packages of lowerbound: add its repository to PYTHONPATH"
            ) from error
        return cls(trainer.load(str(path)))
