"""YAML as configurations are written: 1e-4 is a number; off, on, yes, no and dates are strings (as in YAML 1.2)."""

from __future__ import annotations

import re
from typing import Any

import yaml

MOST_BYTES = 1 << 20  # of a configuration
_MOST_NODES = 200_000  # that aliases may multiply a configuration to
_MOST_MERGED, _MOST_KEYS = 16, 2000  # of a mapping
_DEEPEST = 64

_BOOL, _FLOAT, _TIME = (f"tag:yaml.org,2002:{name}" for name in ("bool", "float", "timestamp"))


class YamlLoader(yaml.SafeLoader):
    """YAML 1.1 with the booleans and exponents of YAML 1.2, and without its dates."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Expand merge keys (<<), which can multiply a text as aliases can, up to a number of keys."""
        for key, value in node.value:
            is_merge = key.tag == "tag:yaml.org,2002:merge" and isinstance(value, yaml.SequenceNode)
            if is_merge and len(value.value) > _MOST_MERGED:
                raise yaml.YAMLError(f"<<: more than {_MOST_MERGED} mappings")
        super().flatten_mapping(node)
        if len(node.value) > _MOST_KEYS:
            raise yaml.YAMLError(f"a mapping of more than {_MOST_KEYS:,} keys")


YamlLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in (_BOOL, _TIME)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
YamlLoader.add_implicit_resolver(_BOOL, re.compile(r"(true|false|True|False)$"), list("tfTF"))
YamlLoader.add_implicit_resolver(_FLOAT, re.compile(r"[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789"))


class Dumper(yaml.SafeDumper):
    """Quotes every string that this Loader, or any YAML 1.1 reader, would take for something else."""


Dumper.yaml_implicit_resolvers = {
    first: [*yaml.SafeDumper.yaml_implicit_resolvers.get(first, []), *YamlLoader.yaml_implicit_resolvers.get(first, [])]
    for first in yaml.SafeDumper.yaml_implicit_resolvers.keys() | YamlLoader.yaml_implicit_resolvers.keys()
}


def parse_yaml(text: str) -> Any:
    """The value of a YAML text. Raises yaml.YAMLError, also if it is too large, too deep, or aliases multiply it."""
    if len(text) > MOST_BYTES:
        raise yaml.YAMLError(f"{len(text):,} characters, at most {MOST_BYTES:,}")
    try:
        value = yaml.load(text, YamlLoader)
        _count(value, 0, _DEEPEST)
    except RecursionError:
        raise yaml.YAMLError("nested too deep") from None
    except (ValueError, OverflowError, TypeError, AttributeError, KeyError) as error:  # of crafted dates and numbers
        raise yaml.YAMLError(str(error)) from error
    return value


def _count(value: Any, nodes: int, depth: int) -> int:
    """`nodes` plus those of a value, each use of an alias included."""
    nodes += 1
    if nodes > _MOST_NODES or depth == 0:
        raise yaml.YAMLError("nested too deep" if depth == 0 else f"more than {_MOST_NODES:,} values")
    items = [*value.keys(), *value.values()] if isinstance(value, dict) else value
    for item in items if isinstance(items, list | tuple | set) else ():
        nodes = _count(item, nodes, depth - 1)
    return nodes
