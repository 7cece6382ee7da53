"""Captions from a table beside images: metadata.csv or metadata.jsonl, as Hugging Face's image folders have them."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from datasets.errors import DataError

NAMES = frozenset({"metadata.csv", "metadata.jsonl", "captions.csv", "captions.jsonl"})
PATHS = ("file_name", "image", "image_path", "path", "filename", "file")
CAPTIONS = ("caption", "text", "prompt", "description")
_MAX_BYTES = 1 << 30
_MAX_CAPTION = 1 << 20  # bytes


def read_captions(root: Path, manifests: list[str], images: set[str]) -> dict[str, str]:
    """The caption of each image that a manifest has a row for, by the image's path below `root`.

    `manifests`: their paths below `root`; paths in them are relative to their own folder. Raises `DataError` in one
    line, with file and row, for a row without an image or with a second caption of one. Empty captions are none.
    """
    captions: dict[str, str] = {}
    for manifest in manifests:
        for number, path, caption in _rows(root / manifest):
            where = f"{root / manifest}: row {number}"
            image = _below(manifest, path, where)
            if image not in images:
                raise DataError(f"{where}: {path!r} is not an image in this folder")
            if image in captions and captions[image] != caption:
                raise DataError(f"{where}: {path!r} has another caption before")
            if len(caption.encode(errors="replace")) > _MAX_CAPTION:
                raise DataError(f"{where}: a caption of more than {_MAX_CAPTION:,} bytes")
            if caption.strip():
                captions[image] = caption
    return captions


def _below(manifest: str, path: str, where: str) -> str:
    """A path of a manifest as a path below the root. Raises `DataError` if it leads out of the manifest's folder."""
    pure = PurePosixPath(path.replace("\\", "/"))
    if pure.is_absolute() or ".." in pure.parts or not pure.parts:
        raise DataError(f"{where}: {path!r} is not a path below the folder of the manifest")
    return str(PurePosixPath(manifest).parent / pure)


def _rows(path: Path) -> Iterator[tuple[int, str, str]]:
    """(number, path, caption) of each row; the number counts from 1, without a header."""
    try:
        if (size := path.stat().st_size) > _MAX_BYTES:
            raise DataError(f"{path}: {size:,} bytes; the limit is {_MAX_BYTES:,}")
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    rows = _csv_rows(path, text) if path.suffix == ".csv" else _json_rows(path, text)
    columns: tuple[str, str] | None = None
    for number, row in rows:
        columns = columns or (_column(path, row, PATHS, "the image"), _column(path, row, CAPTIONS, "the caption"))
        values = [row.get(name) for name in columns]
        for name, value in zip(columns, values, strict=True):
            if not isinstance(value, str) and not (value is None and name == columns[1]):
                raise DataError(f"{path}: row {number}: {name} is not a text")
        yield number, str(values[0]), str(values[1] or "")


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(text.splitlines(keepends=True), strict=True)
    try:
        for number, row in enumerate(reader, 1):
            if None in row or None in row.values():
                raise DataError(f"{path}: row {number}: not as many values as the header has names")
            yield number, row
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num}: not CSV ({error})") from error


def _json_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: row {number}: not JSON ({error})") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}: row {number}: not a JSON object")
        yield number, row


def _column(path: Path, row: dict[str, Any], names: tuple[str, ...], what: str) -> str:
    """The column of a manifest that has the paths, or the captions."""
    found = [name for name in names if name in row]
    if not found:
        has = ", ".join(sorted(map(str, row)))[:200]
        raise DataError(f"{path}: no column for {what} ({', '.join(names)}); it has {has}")
    return found[0]
