"""Read overrides of a command line: `optim.lr=1e-4`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel

from jobs.config.messages import union_members
from jobs.config.schema import RunConfig
from jobs.config.yaml_dialect import parse_yaml
from jobs.errors import ConfigError


def parse_override(override: str) -> dict[str, Any]:
    """`optim.lr=1e-4` as {"optim": {"lr": 1e-4}}. Raises ConfigError.

    The value is YAML, except that keys with text as their value take it as it stands: run=2024-01-01, run=a #1.
    """
    key, equals, text = override.partition("=")
    if not equals or not re.fullmatch(r"[\w.]+", key):
        raise ConfigError(f"{override!r}: an override is key=value, as in optim.lr=1e-4")
    types = set(_types(RunConfig, key.split(".")))
    value = _text(text.strip(), types) if str in types and all(_is_text(each) for each in types) else _yaml(override)
    for part in reversed(key.split(".")):
        value = {part: value}
    assert isinstance(value, dict)
    return value


def _yaml(override: str) -> Any:
    try:
        return parse_yaml(override.partition("=")[2])
    except yaml.YAMLError as error:
        raise ConfigError(f"{override!r}: the value is not YAML") from error


def _text(text: str, types: set[Any]) -> Any:
    """The value of a key that takes text: in quotes if it is written so; null and lists where the key takes them."""
    try:
        value = parse_yaml(text)
    except yaml.YAMLError:
        return text
    if value is None and type(None) in types:
        return None
    if text[:1] in ("'", '"') and isinstance(value, str):
        return value
    if isinstance(value, list) and any(get_origin(each) is tuple for each in types):
        return value
    return text


def _is_text(annotation: Any) -> bool:
    return annotation in (str, type(None)) or (get_origin(annotation) is tuple and str in get_args(annotation))


def _types(schema: Any, path: list[str]) -> Iterator[Any]:
    """All types that the value of a key may have, in any member of the unions on its path."""
    for member in union_members(schema):
        if not path:
            yield member
        elif isinstance(member, type) and issubclass(member, BaseModel):
            if field := member.model_fields.get(path[0]):
                yield from _types(field.annotation, path[1:])
        elif isinstance(get_origin(member), type) and issubclass(get_origin(member), Mapping):
            yield from _types(get_args(member)[-1], path[1:])
