"""What Ray takes for the run's store.

Ray Train insists on keeping notes of its own beside the checkpoints that it is told of: a marker that every rank must
see, and a list of commits that it rewrites with each and stops the run when it cannot. We need neither: which commit to
go on from is the trainer's business, and a store that is away must not end a run. So Ray gets a file system on which
its notes are written into the void, and in which every folder is there.
"""

from __future__ import annotations

import io
from typing import Any

import pyarrow as pa
from pyarrow.fs import FileInfo, FileSystemHandler, FileType, PyFileSystem

NOTES = ".json"  # the list of commits; not to be found by the next driver


class Void(FileSystemHandler):
    """Folders are there, notes are not, and whatever is written is gone."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Void)

    def __hash__(self) -> int:
        return hash(Void)

    def get_type_name(self) -> str:
        return "void"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> list[FileInfo]:
        return [FileInfo(path, FileType.NotFound if path.endswith(NOTES) else FileType.Directory) for path in paths]

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


def as_ray_sees(url: str) -> tuple[PyFileSystem, str]:
    """The file system and the path for a URL of the run."""
    return PyFileSystem(Void()), url.replace("://", "/", 1)
