"""What made a run is recorded: the code, the libraries, the machine."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

from trainer.checkpoints import provenance as module
from trainer.checkpoints.provenance import provenance


@pytest.fixture
def repository(tmp_path: Path, monkeypatch) -> Path:
    """A git repository with one commit, taken for ours."""
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "code.py").write_text("1")
    for arguments in (["init"], ["add", "."], ["commit", "-m", "first"]):
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True)
    monkeypatch.setattr(module, "REPOSITORY", folder)
    return folder


def test_the_commit_and_whether_the_tree_is_clean(repository: Path) -> None:
    head = subprocess.run(
        ["git", "-C", str(repository), "rev-parse", "HEAD"], check=True, capture_output=True, text=True
    ).stdout.strip()
    assert provenance()["git"] == {"commit": head, "clean": True}
    (repository / "code.py").write_text("2")
    assert provenance()["git"] == {"commit": head, "clean": False}
    assert module.commit_name() == f"{head}-dirty"  # of a copy of this tree, which a job runs


def test_without_a_repository_the_environment_names_the_commit(repository: Path, monkeypatch) -> None:
    shutil.rmtree(repository / ".git")
    assert provenance()["git"] == {"commit": None, "clean": None}
    monkeypatch.setenv("LOWERBOUND_COMMIT", "abc123")
    assert provenance()["git"] == {"commit": "abc123", "clean": None}


def test_without_git_the_environment_names_the_commit(monkeypatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("LOWERBOUND_COMMIT", "abc123")
    assert provenance()["git"] == {"commit": "abc123", "clean": None}


def test_a_folder_inside_another_repository_is_not_that_repository(repository: Path, monkeypatch) -> None:
    (repository / "inside").mkdir()
    monkeypatch.setattr(module, "REPOSITORY", repository / "inside")
    assert provenance()["git"] == {"commit": None, "clean": None}


def test_versions_devices_and_host() -> None:
    found = provenance("bf16")
    assert json.loads(json.dumps(found)) == found
    assert found["versions"]["torch"] == metadata.version("torch")
    assert found["versions"]["ray"] == metadata.version("ray")
    assert found["versions"]["cuda"] == torch.version.cuda
    assert found["versions"]["python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}.")
    assert sum(found["devices"].values()) == found["world_size"] == 1
    assert (found["precision"], found["hostname"]) == ("bf16", socket.gethostname())
