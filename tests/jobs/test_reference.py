"""The configuration's JSON Schema and reference page: current, and as strict as the configuration itself."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from pydantic import BaseModel

from jobs.config.reference import json_schema, reference
from jobs.config.schema import RunConfig
from tests.testbed.jobs import call_job
from tests.testbed.processes import REPOSITORY

CONFIGS = sorted((REPOSITORY / "jobs/configs").glob("*.yaml"))
FIRST_LINE = "# yaml-language-server: $schema=schema.json\n"
SCHEMA = json.loads((REPOSITORY / "jobs/configs/schema.json").read_text())
SMALL = {"run": "runs/a", "model": {"kind": "vae"}, "data": {"shards": "data/a"}}


class EditorsYaml(yaml.SafeLoader):
    """YAML 1.2's core schema, as editors read it: a number has no underscores but may be 1e-4, and `off` is a word."""


EditorsYaml.yaml_implicit_resolvers = {}
for tag, pattern in {
    "bool": r"true|false",
    "int": r"[-+]?[0-9]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?",
    "null": r"null|~|",
}.items():
    EditorsYaml.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(f"({pattern})$"), None)


def sections(model: type[BaseModel]) -> list[dict[str, Any]]:
    schema = model.model_json_schema()
    return [schema, *schema["$defs"].values()]


def test_every_field_has_a_docstring() -> None:
    missing = [
        f"{section['title']}.{name}"
        for section in sections(RunConfig)
        for name, field in section["properties"].items()
        if "description" not in field and name != "kind"
    ]
    assert not missing


def test_every_section_has_a_docstring() -> None:
    assert not [section["title"] for section in sections(RunConfig) if not section.get("description")]


def test_the_files_are_current() -> None:
    message = "run `make reference`"
    assert json_schema() == SCHEMA, message
    assert reference() == (REPOSITORY / "docs/configuration.md").read_text(), message


def test_the_command_prints_both() -> None:
    assert call_job("config.__main__", "--schema").stdout == (REPOSITORY / "jobs/configs/schema.json").read_text()
    assert call_job("config.__main__", "--reference").stdout == reference()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_editors_find_nothing_wrong_with_a_shipped_configuration(path: Path) -> None:
    assert path.read_text().startswith(FIRST_LINE)
    values = yaml.load(path.read_text(), EditorsYaml)
    jsonschema.validate(values, SCHEMA)


def test_numbers_with_underscores_are_strings_to_an_editor() -> None:
    """Else the test above would prove nothing about them."""
    assert yaml.load("[200_000, 1e-4, off, 1.5, true]", EditorsYaml) == ["200_000", 1e-4, "off", 1.5, True]


@pytest.mark.parametrize(
    "wrong",
    [
        {"optm": {}},
        {"optim": {"lr": "fast"}},
        {"optim": {"lr": 0}},
        {"trainer": {"images": 1.5}},
        {"model": {"kind": "none"}},
        {"model": {"kind": "vae", "encoder": {"kind": "mlp", "hiden": [1]}}},
        {"tracking": {"mode": "of"}},
        {"data": {"shards": "a", "streams": "x"}},
    ],
)
def test_editors_see_what_is_wrong(wrong: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(SMALL | wrong, SCHEMA)


@pytest.mark.parametrize(
    "right",
    [
        {"data": {"shards": ["a", "b"], "memory": "1GiB", "streams": 8}},
        {"trainer": {"images": "200_000", "micro_batch": None}},
        {"ray": {"workers": [1, 8]}},
        {"model": {"kind": "diffusion", "denoiser": {"conditions": {"label": {"kind": "class"}}}}},
    ],
)
def test_editors_accept_what_is_right(right: dict[str, Any]) -> None:
    jsonschema.validate(SMALL | right, SCHEMA)


def test_only_a_file_with_a_base_may_be_incomplete() -> None:
    jsonschema.validate({"base": "other.yaml", "model": {"latent": 3}}, SCHEMA)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"run": "runs/a", "model": {"kind": "vae"}}, SCHEMA)


def test_the_page_lists_every_key_and_its_links_lead_somewhere() -> None:
    page = reference()
    for section in sections(RunConfig):
        for name in section["properties"]:
            assert name == "kind" or f"| `{name}` |" in page
    anchors = {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", page, re.MULTILINE)
    }
    links = re.findall(r"\]\(#([^)]+)\)", page)
    assert len(links) > 40
    assert set(links) <= anchors


def test_the_page_says_what_may_change_on_resume() -> None:
    page = reference()
    assert re.search(r"^\| `lr` \|[^|]*\|[^|]*\| may change \|", page, re.MULTILINE)
    assert re.search(r"^\| `batch` \|[^|]*\|[^|]*\|  \|", page, re.MULTILINE)
    assert re.search(r"^\| `keep_best` \|[^|]*\|[^|]*\| may change \|", page, re.MULTILINE)  # of a section that may
