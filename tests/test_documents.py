"""What the documents point at exists."""

from __future__ import annotations

import re

import pytest

from tests.testbed.processes import REPOSITORY

POINTERS = re.findall(
    r"`([\w/]+\.py)`((?: `[\w.]+`(?:, (?=`))?| and `[\w.]+`)+)", (REPOSITORY / "trainer/EQUATIONS.md").read_text()
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
        for path in re.findall(r"`((?:jobs|trainer|datasets|cluster|tests)/[\w/]+(?:\.py|/))`", line):
            assert (REPOSITORY / path).exists(), f"{document}: {path}"


def test_the_documents_link_to_something():
    assert re.search(r"\]\(docs/", (REPOSITORY / "README.md").read_text())


def test_the_targets_of_the_readme_are_in_the_makefile():
    makefile = (REPOSITORY / "Makefile").read_text()
    named = set(re.findall(r"^make ([a-z-]+)", (REPOSITORY / "README.md").read_text(), re.MULTILINE))
    assert named
    missing = [target for target in named if not re.search(rf"^{target}:", makefile, re.MULTILINE)]
    assert not missing
