"""The image files below a folder, and what else there is, counted by reason."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from datasets.errors import DataError
from datasets.images.kinds import HEAD, kind_of, not_an_image
from datasets.packing.sources import manifest

EXTENSIONS = frozenset({"png", "jpg", "jpeg", "jpe", "jfif", "webp", "bmp", "gif", "tif", "tiff", "npy"})
_SYSTEM = frozenset({"@eadir", "__macosx", "#recycle", "$recycle.bin", "lost+found", "thumbs.db", "desktop.ini"})
_THREADS = 16  # the first bytes of a file on a network disk take milliseconds


class Stamp(NamedTuple):
    """By which a changed file is noticed."""

    size: int  # bytes
    mtime: int  # ns


class File(NamedTuple):
    """An image file."""

    path: str  # relative to the root, with slashes
    kind: str  # by its bytes: see `datasets.images.kinds`
    stamp: Stamp
    caption: Stamp | None  # of the .txt file of the same name


class Skipped:
    """What was not taken, by reason: how many, and the first."""

    def __init__(self) -> None:
        self.reasons: dict[str, tuple[int, str]] = {}

    def add(self, reason: str, path: str, count: int = 1) -> None:
        """Count a path."""
        before, first = self.reasons.get(reason, (0, path))
        self.reasons[reason] = before + count, first

    def __str__(self) -> str:
        """In one line: 3 empty (cat/1.png, ...), 1 .heic (dog/2.heic)."""
        entries = sorted(self.reasons.items(), key=lambda entry: (-entry[1][0], entry[0]))
        return ", ".join(
            f"{count:,} {reason} ({first}{', ...' if count > 1 else ''})" for reason, (count, first) in entries
        )


def find_images(root: Path, follow_links: bool = False) -> tuple[list[File], list[str], Skipped]:
    """The image files below a folder, sorted by path; the paths of manifests with captions; and what was skipped.

    Links to folders are followed if they stay inside the folder, or if `follow_links`. Raises `DataError` if there are
    no images.
    """
    skipped = Skipped()
    paths, captions, manifests = [], {}, []
    for path in _walk(root, "", follow_links, skipped, (os.path.realpath(root),)):
        name, _, extension = path.rpartition(".")
        extension = extension.lower()
        if extension in EXTENSIONS:
            paths.append(path)
        elif path.rpartition("/")[2] in manifest.NAMES:
            manifests.append(path)
        elif extension == "txt":
            captions[name] = path
        else:
            skipped.add(f".{extension}" if name and "/" not in extension else "without an extension", path)
    files = []
    with ThreadPoolExecutor(_THREADS) as pool:
        for path, (kind, stamp) in zip(paths, pool.map(_look, [root / path for path in paths]), strict=True):
            if stamp is None:
                skipped.add(kind, path)
                continue
            caption = captions.get(path.rpartition(".")[0])
            files.append(File(path, kind, stamp, stamp_of(root / caption) if caption else None))
    taken = {file.path.rpartition(".")[0] for file in files}
    for name, path in captions.items():
        if name not in taken:
            skipped.add(".txt", path)
    if not files:
        raise DataError(f"{root}: no images in this folder{f'; skipped: {skipped}' if skipped.reasons else ''}")
    return sorted(files), sorted(manifests), skipped


def read_unchanged(path: Path, stamp: Stamp) -> bytes:
    """The bytes of a file. Raises `DataError` if it cannot be read or has changed since it was found."""
    try:
        with path.open("rb") as stream:
            data = stream.read()
            status = os.fstat(stream.fileno())
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})") from error
    if Stamp(status.st_size, status.st_mtime_ns) != stamp:
        raise DataError("changed while it was packed; pack again")
    return data


def stamp_of(path: Path) -> Stamp | None:
    """The stamp of a file; None if there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return Stamp(status.st_size, status.st_mtime_ns)


def is_inside(path: Path, root: Path) -> bool:
    """Whether a file lies below a folder after all links are resolved."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))


def _look(path: Path) -> tuple[str, Stamp | None]:
    """(kind, stamp) of an image file; (reason, None) of another."""
    try:
        with path.open("rb") as stream:
            head, status = stream.read(HEAD), os.fstat(stream.fileno())
    except OSError as error:
        return f"unreadable: {error.strerror}", None
    kind = kind_of(head)
    return (kind, Stamp(status.st_size, status.st_mtime_ns)) if kind else (not_an_image(head), None)


def _walk(root: Path, folder: str, follow: bool, skipped: Skipped, above: tuple[str, ...]) -> Iterator[str]:
    """The paths of the regular files below root/folder, relative to root; `above`: the real folders that hold it."""
    with os.scandir(root / folder) as entries:
        listed = sorted(entries, key=lambda entry: entry.name)
    for entry in listed:
        path = f"{folder}/{entry.name}" if folder else entry.name
        if entry.name.startswith(".") or entry.name.lower() in _SYSTEM:
            skipped.add("hidden or system files", path)
        elif entry.is_dir():
            real = os.path.realpath(entry.path)
            if reason := _refused(real, entry.is_symlink(), follow, above):
                skipped.add(reason, path)
            else:
                yield from _walk(root, path, follow, skipped, (*above, real))
        elif entry.is_file():
            yield path
        else:
            skipped.add("broken links" if entry.is_symlink() else "not a regular file", path)


def _refused(real: str, link: bool, follow: bool, above: tuple[str, ...]) -> str:
    """Why a folder is not entered; "" if it is."""
    if real in above:
        return "links to a folder that holds them"
    if link and not follow and not Path(real).is_relative_to(above[0]):
        return "links to folders outside (--follow-links follows them)"
    return ""
