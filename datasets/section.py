"""Base of the sections of a run's YAML that `datasets` reads."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

MayChange = Field(json_schema_extra={"may_change": True})
"""Marks a field that may change when a run is resumed, as `trainer.config.MayChange` does, which is not imported."""


class Section(BaseModel):
    """Immutable; unknown keys are errors; the docstring under a field is its description."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
