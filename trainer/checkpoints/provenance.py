"""What made a run: the code, the versions of its libraries, the machine. Recorded by attempts and exports."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from trainer.distributed.ranks import all_gather_object, world_size

REPOSITORY = Path(__file__).resolve().parents[2]
COMMIT = "LOWERBOUND_COMMIT"  # environment variable: the git commit, where the code is not in a repository (an image)
LIBRARIES = ("torch", "accelerate", "ray", "safetensors", "numpy")
GIT_SECONDS = 10.0


def provenance(precision: str | None = None) -> dict[str, Any]:
    """JSON: git commit, library versions, devices of all ranks, precision, world size, host. All ranks together.

    What is not known is None: the commit outside a git repository, a library that is not installed.
    """
    return {
        **code(),
        "devices": dict(Counter(all_gather_object(_device(), None))),  # ranks by the name of their device
        "precision": precision,
        "world_size": world_size(),
        "hostname": socket.gethostname(),
    }


def code() -> dict[str, Any]:
    """The part of it that is the same on every machine: git commit and versions."""
    versions = {name: _version(name) for name in LIBRARIES}
    return {
        "git": _git(REPOSITORY),
        "versions": {"python": platform.python_version(), **versions, "cuda": torch.version.cuda},
    }


def commit_name() -> str:
    """The git commit for the environment of processes that run a copy of this code; "" if unknown."""
    git = _git(REPOSITORY)
    return (git["commit"] or "") + ("-dirty" if git["clean"] is False else "")


def _git(folder: Path) -> dict[str, Any]:
    """The commit of a repository and whether its working tree is clean."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=GIT_SECONDS).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != folder.resolve():
            raise OSError("a folder inside another repository")
        return {"commit": git("rev-parse", "HEAD"), "clean": not git("status", "--porcelain")}
    except (OSError, subprocess.SubprocessError):
        return {"commit": os.environ.get(COMMIT) or None, "clean": None}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _device() -> str:
    """The name of this rank's device."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu ({platform.machine()})"
