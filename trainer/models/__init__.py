"""Models, one file each; the configuration chooses by `kind`. A new file here is a new choice."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING, Annotated, Union

from pydantic import Field

from trainer.models.base import Model, ModelConfigBase


def _kinds() -> tuple[type[ModelConfigBase], ...]:
    """The configurations with a `kind` in the modules of this package."""
    found: dict[type[ModelConfigBase], None] = {}
    for module in pkgutil.iter_modules(__path__):
        for value in vars(importlib.import_module(f"{__name__}.{module.name}")).values():
            if isinstance(value, type) and issubclass(value, ModelConfigBase) and "kind" in value.model_fields:
                found[value] = None
    return tuple(found)


KINDS = _kinds()

if TYPE_CHECKING:
    ModelConfig = ModelConfigBase
else:
    ModelConfig = Annotated[Union[KINDS], Field(discriminator="kind")]  # noqa: UP007

__all__ = ["KINDS", "Model", "ModelConfig", "ModelConfigBase"]
