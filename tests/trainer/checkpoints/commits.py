"""Commits of given files, as tests write and read them."""

from __future__ import annotations

from collections.abc import Collection

from trainer.checkpoints.commit import Commit
from trainer.checkpoints.lineage import Lineage


def write_commit(lineage: Lineage, commit: Commit, files: dict[str, bytes]) -> None:
    """Write the files, then the manifest."""
    folder = lineage.folder(commit)
    lineage.complete(commit, {name: folder.write_file(name, data) for name, data in files.items()})


def read_commit(lineage: Lineage, commit: Commit, only: Collection[str] = ()) -> dict[str, bytes]:
    """The files, checked against the manifest."""
    folder = lineage.folder(commit)
    manifest = folder.manifest()
    return {name: folder.read_file(manifest, name) for name in only or manifest.files}
