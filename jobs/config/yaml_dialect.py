"""YAML as configurations are written: 1e-4 is a number; off, on, yes, no and dates are strings (as in YAML 1.2)."""

from __future__ import annotations

import re

import yaml

_BOOL, _FLOAT, _TIME = (f"tag:yaml.org,2002:{name}" for name in ("bool", "float", "timestamp"))


class YamlLoader(yaml.SafeLoader):
    """YAML 1.1 with the booleans and exponents of YAML 1.2, and without its dates."""


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
