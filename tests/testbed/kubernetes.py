"""Kubernetes' own check of custom resources, without a cluster: strict, as `kubectl apply --validate=strict` is.

A CustomResourceDefinition carries an OpenAPI schema. It is turned into a JSON schema that refuses unknown fields, as
the API server does under strict validation, and knows Kubernetes' extensions (int-or-string, preserved unknown fields).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import yaml

_METADATA = {"type": "object", "required": ["name"]}


class CustomResources:
    """The kinds that the definitions in a folder's YAML files describe."""

    def __init__(self, folder: Path):
        self._validators: dict[tuple[str, str], jsonschema.Draft7Validator] = {}
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # these files have megabytes
        for path in sorted(folder.glob("*.yaml")):
            definition = yaml.load(path.read_text(), loader)["spec"]
            for version in definition["versions"]:
                schema = _strict(version["schema"]["openAPIV3Schema"])
                kind = definition["names"]["kind"]
                schema["properties"] |= {
                    "apiVersion": {"type": "string"},
                    "kind": {"const": kind},
                    "metadata": _METADATA,
                }
                api_version = f"{definition['group']}/{version['name']}"
                self._validators[api_version, kind] = jsonschema.Draft7Validator(schema)

    def knows(self, document: dict[str, Any]) -> bool:
        """Whether a document is of a kind described here."""
        return (document.get("apiVersion"), document.get("kind")) in self._validators

    def problems(self, document: dict[str, Any]) -> Iterator[str]:
        """What is wrong with a document, "where: what" each."""
        validator = self._validators[document["apiVersion"], document["kind"]]
        for error in validator.iter_errors(document):
            yield f"{'/'.join(map(str, error.absolute_path)) or document['kind']}: {error.message}"


def _strict(schema: Any) -> Any:
    """An OpenAPI schema of Kubernetes as a JSON schema that refuses unknown fields."""
    if not isinstance(schema, dict):
        return schema
    open_ended = schema.get("x-kubernetes-preserve-unknown-fields") or schema.get("x-kubernetes-embedded-resource")
    strict = {
        name: value
        for name, value in schema.items()
        if not name.startswith("x-kubernetes-") and name not in ("nullable", "format", "default", "description")
    }
    if schema.get("x-kubernetes-int-or-string"):
        strict.pop("type", None)
        strict["anyOf"] = [{"type": "integer"}, {"type": "string"}]
        return strict
    if schema.get("nullable") and "type" in strict:
        strict["type"] = [strict["type"], "null"]
    if "properties" in schema:
        strict["properties"] = {name: _strict(value) for name, value in schema["properties"].items()}
        if not open_ended and "additionalProperties" not in schema:
            strict["additionalProperties"] = False
    for name in ("items", "additionalProperties"):
        if name in strict:
            strict[name] = _strict(strict[name])
    # Alternatives only add conditions to fields that stand in "properties": they stay as they are.
    return strict
