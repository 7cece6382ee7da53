"""The base of every section of the configuration."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

MayChange = Field(json_schema_extra={"may_change": True})
"""Marks a field or section that may change when a run is resumed: `lr: Annotated[float, MayChange]`. All other fields
are fixed for the life of a run."""


class Config(BaseModel):
    """A section of a run's YAML: typed, frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def absolute_folder(path: str) -> str:
    """A folder that exists by its absolute path, for processes that run elsewhere; another name as it is."""
    return str(Path(path).absolute()) if Path(path).is_dir() else path
