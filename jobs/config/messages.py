"""Errors in a configuration as one line that names the file and the key as it stands in the YAML."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError


class KeyLocation(NamedTuple):
    """Where in a configuration something is wrong."""

    key: str  # dotted, as in the YAML
    allowed: list[str]  # keys of the section that holds it


def explain(error: ValidationError, schema: type[BaseModel], origins: dict[str, str], path: str) -> str:
    """The first error in one line. `origins` says which file gave a dotted key; `path` is named where none did."""
    errors = error.errors()
    found = [(locate_key(each["loc"], schema), each) for each in errors]
    start = found[0][0].key
    # Every member of a union reports its own error: the deepest key tells what was meant.
    same = [(place, each) for place, each in found if place.key == start or place.key.startswith(f"{start}.")]
    (key, allowed), first = max(same, key=lambda pair: pair[0].key.count("."))
    message = first["msg"].removeprefix("Value error, ")
    where = f"{_origin(key, origins) or path}: {key}"
    match first["type"]:
        case "extra_forbidden":
            name = key.rsplit(".", 1)[-1]
            near = difflib.get_close_matches(name, allowed, 1, 0.5)
            hint = f"did you mean {near[0]!r}? " if near else ""
            return f"{where}: unknown key; {hint}allowed are {', '.join(allowed)}"
        case "missing":
            return f"{where}: is missing"
        case "union_tag_not_found":
            return f"{where}.kind: is missing; it says which {key.rpartition('.')[2]} it is"
        case "union_tag_invalid":
            context = first["ctx"]
            return f"{where}.kind: there is no {context['tag']!r}; it is one of {context['expected_tags']}"
        case "value_error" if re.match(r"[a-z_0-9.]+: ", message):  # of a key of this section
            return f"{where}.{message}"
    message = _alternatives([_plain(each["msg"]) for place, each in same if place.key == key])
    given = "" if isinstance(first["input"], dict) else f", got {first['input']!r}"
    quotes = "; write it in quotes" if first["type"] == "string_type" and type(first["input"]) in (int, float) else ""
    return f"{where}: {message}{given}{quotes}"


def _plain(message: str) -> str:
    """pydantic's message in the terms of YAML."""
    text = message.removeprefix("Value error, ").replace("a valid tuple", "a list")
    text = re.sub(r"a valid dictionary or (object to extract fields from|instance of \w+)", "a section with keys", text)
    return text[0].lower() + text[1:]


def _alternatives(messages: list[str]) -> str:
    """What any member of a union would take: "input should be a list or 'auto'"."""
    first, *others = dict.fromkeys(messages)
    return " or ".join([first, *(message.removeprefix("input should be ") for message in others)])


def locate_key(loc: tuple[int | str, ...], schema: type[BaseModel]) -> KeyLocation:
    """The place of an error's `loc`, which has the members of unions in it as well as keys."""
    current: Any = schema
    key: list[str] = []
    allowed: list[str] = []
    for part in loc:
        members = [member for member in union_members(current) if member is not type(None)]
        if len(members) > 1:  # the part says which member did not fit, and is no key
            current = next((member for member in members if _is_member(member, part)), None)
            continue
        current = members[0]
        key.append(str(part))
        if isinstance(current, type) and issubclass(current, BaseModel):
            allowed = sorted(current.model_fields)
            field = current.model_fields.get(str(part))
            current = field.annotation if field else None
        else:  # an item of a tuple, a value of a mapping
            items = [argument for argument in get_args(current) if argument is not ...]
            current = items[-1] if items else None
    return KeyLocation(".".join(key), allowed)


def union_members(annotation: Any) -> Iterator[Any]:
    """The members of a union, through Annotated; what is no union is its only member."""
    if get_origin(annotation) is Annotated:
        yield from union_members(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, UnionType):
        for member in get_args(annotation):
            yield from union_members(member)
    else:
        yield annotation


def _is_member(member: Any, tag: int | str) -> bool:
    """Whether pydantic calls a union's member by this tag: its `kind`, its class, or its type."""
    if isinstance(member, type) and issubclass(member, BaseModel):
        kind = member.model_fields.get("kind")
        return tag == member.__name__ or (kind is not None and tag in get_args(kind.annotation))
    return get_origin(member) is tuple and str(tag).startswith("tuple[")


def _origin(key: str, origins: dict[str, str]) -> str | None:
    """The file that gave a key or the section around it."""
    parts = key.split(".")
    for length in range(len(parts), 0, -1):
        if source := origins.get(".".join(parts[:length])):
            return source
    return None
