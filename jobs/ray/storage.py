"""The file system that Ray Train gets for a run: it discards everything.

Ray Train stores records of its own beside the checkpoints reported to it: a marker that every rank must see, and a list
of commits that it rewrites with each commit, ending the run if it cannot. Neither is needed: the trainer chooses the
commit to resume from, and an unavailable store must not end a run.
"""

from __future__ import annotations

import io
from typing import Any

import pyarrow as pa
from pyarrow.fs import FileInfo, FileSystemHandler, FileType, PyFileSystem

RECORDS = ".json"  # the list of commits, which the next driver must not find


class NullFileSystem(FileSystemHandler):  # type: ignore[misc]  # pyarrow is untyped
    """Every folder exists, Ray's own records do not, and whatever is written is discarded."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NullFileSystem)

    def __hash__(self) -> int:
        return hash(NullFileSystem)

    def get_type_name(self) -> str:
        return "void"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> list[FileInfo]:
        return [FileInfo(path, FileType.NotFound if path.endswith(RECORDS) else FileType.Directory) for path in paths]

    def get_file_info_selector(self, selector: Any) -> list[FileInfo]:
        return []

    def create_dir(self, path: str, recursive: bool) -> None: ...

    def delete_dir(self, path: str) -> None: ...

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None: ...

    def delete_root_dir_contents(self) -> None: ...

    def delete_file(self, path: str) -> None: ...

    def move(self, source: str, destination: str) -> None: ...

    def copy_file(self, source: str, destination: str) -> None: ...

    def open_output_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        return pa.PythonFile(io.BytesIO(), mode="w")

    def open_append_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        return self.open_output_stream(path, metadata)

    def open_input_stream(self, path: str) -> pa.NativeFile:
        raise FileNotFoundError(path)

    def open_input_file(self, path: str) -> pa.NativeFile:
        raise FileNotFoundError(path)


def for_ray(url: str) -> tuple[PyFileSystem, str]:
    """The file system and the path that Ray gets for a URL of the run."""
    return PyFileSystem(NullFileSystem()), url.replace("://", "/", 1)
