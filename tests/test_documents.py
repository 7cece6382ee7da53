"""What the documents point at exists."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from pydantic.fields import FieldInfo

import trainer
from jobs.config.loading import load_config
from jobs.config.resume import may_change
from jobs.config.schema import RunConfig
from jobs.train_local import main as train_local
from tests.testbed.jobs import call_job
from tests.testbed.processes import REPOSITORY

POINTERS = re.findall(
    r"`([\w/]+\.py)`((?: `[\w.]+`(?:, (?=`))?| and `[\w.]+`)+)", (REPOSITORY / "docs/equations.md").read_text()
)


@pytest.mark.parametrize(("path", "names"), POINTERS)
def test_every_equation_leads_to_code(path, names):
    source = (REPOSITORY / path).read_text()
    for name in re.findall(r"`([\w.]+)`", names):
        for part in name.split("."):
            assert re.search(rf"\b(def|class) {part}\b", source), f"{path} has no {name}"


def test_the_page_of_equations_points_at_code():
    assert len(POINTERS) >= 45


DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "SECURITY.md",
    *(str(path.relative_to(REPOSITORY)) for path in REPOSITORY.glob("docs/*.md")),
]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    path = REPOSITORY / document
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", path.read_text()) if "://" not in target]
    missing = [target for target in targets if not (path.parent / target.partition("#")[0]).exists()]
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_and_names_in_the_documents_exist(document):
    """Paths in backticks."""
    for line in (REPOSITORY / document).read_text().splitlines():
        for path in re.findall(r"`((?:jobs|trainer|datasets|cluster|tests)/[\w/-]+(?:\.\w+|/))`", line):
            assert (REPOSITORY / path).exists(), f"{document}: {path}"


def test_the_documents_link_to_something():
    assert re.search(r"\]\(docs/", (REPOSITORY / "README.md").read_text())


def test_the_targets_of_the_readme_are_in_the_makefile():
    makefile = (REPOSITORY / "Makefile").read_text()
    named = set(re.findall(r"^make ([a-z-]+)", (REPOSITORY / "README.md").read_text(), re.MULTILINE))
    assert named
    missing = [target for target in named if not re.search(rf"^{target}:", makefile, re.MULTILINE)]
    assert not missing


PAGES = sorted((REPOSITORY / "docs").glob("*.md"))


def pages_of(nav: list) -> Iterator[str]:
    """The pages of a table of contents, depth first."""
    for entry in nav:
        for content in entry.values():
            if isinstance(content, str):
                yield content
            else:
                yield from pages_of(content)


def test_the_table_of_contents_has_every_page_once():
    site = yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text())
    assert sorted(pages_of(site["nav"])) == [path.name for path in PAGES]


def test_the_site_loads_nothing_from_elsewhere():
    site = yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text())
    assert site["theme"]["font"] is False
    assert "://" not in (REPOSITORY / "mkdocs.yml").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_lists_and_tables_begin_after_a_blank_line(page):
    """Python-Markdown, which makes the site, joins them to the paragraph otherwise."""
    fenced = False
    for before, line in pairwise(page.read_text().splitlines()):
        fenced ^= before.startswith("```")
        begins = re.match(r"([*-]|1\.) ", line) or line.startswith("| ")
        continues = not before or before.startswith(("|", "* ", "- ", "  ", "1. "))
        assert fenced or not begins or continues, line


CONFIGURATIONS = [
    pytest.param(text, id=f"{page.name}-{number}")
    for page in PAGES
    for number, text in enumerate(re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL))
]


@pytest.mark.parametrize("text", CONFIGURATIONS)
def test_every_configuration_in_the_pages_is_complete_and_valid(tmp_path, text):
    (tmp_path / "jobs").symlink_to(REPOSITORY / "jobs")  # `base: jobs/configs/...`, of a file in the repository's root
    (tmp_path / "run.yaml").write_text(text)
    assert load_config(str(tmp_path / "run.yaml"), []).run


def test_the_pages_have_configurations():
    assert len(CONFIGURATIONS) >= 10


KEYS = {
    key
    for line in (REPOSITORY / "docs/configuration.md").read_text().splitlines()
    for key in re.findall(r"^\| `(\w+)` \|", line)
}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_keys_in_the_pages_exist(page):
    """`optim.lr`, `trainer.images=400_000`: where the first part is a section of a run, the last one is a key."""
    for section, path in re.findall(r"`(data|optim|trainer|tracking|ray)\.([a-z_.]+)", page.read_text()):
        name = path.strip(".").rpartition(".")[2]
        recorded = (section, path) == ("data", "order_version")  # in fingerprints only
        assert recorded or name in KEYS or (section == "trainer" and hasattr(trainer, name)), f"{section}.{path}"


def field_of(key: str) -> FieldInfo:
    """The field of a dotted key."""
    model, field = RunConfig, None
    for part in key.split("."):
        field = model.model_fields[part]
        model = field.annotation
    assert field is not None
    return field


def test_the_page_on_resuming_says_what_may_change():
    page = (REPOSITORY / "docs/resume.md").read_text()
    rows = re.findall(
        r"^\| (.*) \| (.*) ?\|$", page.partition("| may change | fixed |")[2].partition("\n\n")[0], re.MULTILINE
    )
    changing, fixed = (re.findall(r"`([\w.]+)`", " ".join(column)) for column in zip(*rows, strict=True))
    assert len(changing) >= 20
    assert len(fixed) >= 10
    assert [key for key in changing if not may_change(field_of(key))] == []
    assert [key for key in fixed if may_change(field_of(key))] == []


ROWS = re.findall(
    r"^\| ((?:digits|mnist|fashion|cifar10|imagenet64)-[a-z-]+)(.*)$",
    (REPOSITORY / "docs/families.md").read_text(),
    re.MULTILINE,
)


@pytest.mark.parametrize(("configuration", "row"), ROWS)
def test_figures_are_those_of_the_configurations_comments(configuration, row):
    lines = (REPOSITORY / f"jobs/configs/{configuration}.yaml").read_text().splitlines()
    comment = " ".join(line.partition("#")[2].strip() for line in lines).replace("_", ",")
    figures = re.findall(r"(?<![\w.])[0-9][0-9,.-]*[0-9]|(?<![\w.,-])[0-9](?![\w.])", row)
    assert figures
    assert not [figure for figure in figures if not re.search(rf"(?<![0-9.]){re.escape(figure)}(?![0-9])", comment)]


def test_there_are_figures():
    assert len(ROWS) >= 15


def test_the_code_of_the_python_page_runs(tmp_path, monkeypatch):
    from datasets.packing.pack import pack
    from datasets.packing.sources.digits import Digits

    monkeypatch.chdir(tmp_path)
    pack(Digits(), "data/digits")
    train_local(
        [
            str(REPOSITORY / "jobs/configs/digits-vae.yaml"),
            "trainer.images=512",
            "trainer.evaluate_every=256",
            "trainer.pictures=0",
            "tracking.mode=off",
        ]
    )
    found: dict = {}
    page = Path(REPOSITORY / "docs/python.md").read_text()
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(block, found)
    assert found["images"].shape == (16, 1, 8, 8)
    assert Path("digit.png").is_file()
    assert found["nats"].shape == (16,)
    assert found["log_weights"].shape == (16, 20)
    assert [images for images, _ in found["curve"]] == [256, 512]
    assert found["index"].classes == 10


def test_the_workflow_runs_what_a_clean_clone_must_pass():
    workflow = yaml.safe_load((REPOSITORY / ".github/workflows/ci.yml").read_text())
    check = workflow["jobs"]["check"]
    assert [step["run"] for step in check["steps"] if "run" in step] == [".ci/run"]
    assert (REPOSITORY / ".ci/run").stat().st_mode & 0o111
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert f">={check['strategy']['matrix']['python'][0]}" == project["requires-python"]


def test_the_citation_agrees_with_the_project():
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()  # what the format requires
    assert (citation["title"], citation["version"], citation["license"]) == (
        project["name"],
        project["version"],
        project["license"],
    )


def test_issue_forms_are_valid():
    for path in (REPOSITORY / ".github/ISSUE_TEMPLATE").glob("*.yml"):
        form = yaml.safe_load(path.read_text())
        if path.name == "config.yml":
            continue
        assert {"name", "description", "body"} <= form.keys()
        identifiers = [element["id"] for element in form["body"]]
        assert len(set(identifiers)) == len(identifiers)
        assert all(element["attributes"]["label"] for element in form["body"])


COMMANDS = [
    (page, job, options)
    for page in DOCUMENTS
    for job, options in re.findall(r"python -m jobs\.(?!config\b)(\w+)([^`\n#]*)", (REPOSITORY / page).read_text())
]


@pytest.mark.parametrize("job", sorted({job for _, job, _ in COMMANDS}))
def test_options_in_the_documents_exist(job):
    known = set(re.findall(r"--[a-z][a-z-]*", call_job(job, "--help").stdout))
    for page, name, options in COMMANDS:
        if name == job:
            assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", options)) <= known, f"{page}: jobs.{job}{options}"


def test_the_documents_have_commands():
    assert len(COMMANDS) >= 60
