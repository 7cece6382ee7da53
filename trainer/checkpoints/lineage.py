"""Who wrote what in a run folder: attempts, commits, and which of them make the history of the newest one.

    <run>/attempts/0002.json                       made once (If-None-Match): number 2, and the commit it started from
    <run>/checkpoints/000000012800-0002/...        files of a commit, after 12800 images, by attempt 2
    <run>/checkpoints/000000012800-0002/manifest.json   written last: it is the commit; what has none does not exist

A newer attempt supersedes: whoever loads follows the newest attempt and, behind it, the commits that it started from.
An older process that finds a newer attempt stops at its next commit, and what it may still write is never loaded. There
is no clock and no lease. Where If-None-Match is not atomic (OpenStack Swift; S3's, Google's, Azure's and a disk's are)
two may claim one number: the one whose record was written over stops at its next commit.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple

from cluster.storage.errors import MissingError
from cluster.storage.storage import Storage
from trainer.errors import SupersededError, TrainingError

MANIFEST = "manifest.json"
FORMAT = 1  # of a manifest and of the files that it lists


class Commit(NamedTuple):
    """A checkpoint that exists: the state after `images` images, written by attempt number `attempt`."""

    images: int
    attempt: int

    @property
    def name(self) -> str:
        """The name of its folder; sorts by images."""
        return f"{self.images:012d}-{self.attempt:04d}"

    @classmethod
    def named(cls, name: str) -> Commit | None:
        """The commit of a folder's name, None if it is not one."""
        match = re.fullmatch(r"(\d{12,})-(\d{4,})", name)
        return cls(int(match[1]), int(match[2])) if match else None


class Attempt(NamedTuple):
    """One process's claim on the run."""

    number: int
    start: Commit | None  # the commit that it went on from
    facts: dict[str, Any]  # what this attempt changed (noise salt, learning-rate factor), and where it ran


class FileDigest(NamedTuple):
    """What a file of a commit must be."""

    bytes: int
    sha256: str


class Manifest(NamedTuple):
    """What a commit consists of."""

    files: dict[str, FileDigest]
    facts: dict[str, Any]  # figures by which it is kept


class Lineage:
    """The attempts and commits below a run's URL."""

    def __init__(self, run: Storage):
        self.run = run
        self._read: dict[int, Attempt] = {}  # a record never changes, so each is read once
        self._claimed: dict[int, str] = {}  # the ids of the attempts that were begun here

    def attempts(self) -> dict[int, Attempt]:
        """All attempts by number, the oldest first. Raises TrainingError if a record cannot be read."""
        return {number: self._attempt(number) for number in self._numbers()}

    def newest_attempt(self) -> int:
        """The number of the newest attempt; 0 if there is none. Reads no object."""
        return max(self._numbers(), default=0)

    def _numbers(self) -> list[int]:
        found = (re.fullmatch(r"attempts/(\d{4,})\.json", entry.path) for entry in self.run.list("attempts"))
        return sorted(int(match[1]) for match in found if match)

    def _attempt(self, number: int) -> Attempt:
        if number not in self._read:
            path = _record(number)
            try:
                record = json.loads(self.run.read(path))
                start = Commit.named(record["start"]) if record["start"] else None
                self._read[number] = Attempt(number, start, record["facts"])
            except (ValueError, KeyError, TypeError) as error:
                raise TrainingError(f"{self.run.url}/{path}: not the record of an attempt ({error})") from error
        return self._read[number]

    def claim(self, start: Commit | None, facts: dict[str, Any] | None = None) -> Attempt:
        """Begin a new attempt that goes on from `start`. Of several that try at once each gets a number of its own."""
        began = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        # The id makes every record different, so that nobody takes another's for its own.
        facts = {"host": socket.gethostname(), "began": began, "id": uuid.uuid4().hex} | (facts or {})
        number = self.newest_attempt() + 1
        while True:
            record = {"attempt": number, "start": start.name if start else None, "facts": facts}
            if self.run.create(_record(number), json.dumps(record, indent=1).encode()):
                self._claimed[number] = facts["id"]
                return Attempt(number, start, facts)
            number += 1

    def commits(self) -> set[Commit]:
        """Every commit that has a manifest, of whatever attempt."""
        found = set()
        for entry in self.run.list("checkpoints"):
            parts = entry.path.split("/")
            commit = Commit.named(parts[1]) if len(parts) == 3 and parts[2] == MANIFEST else None
            if commit:
                found.add(commit)
        return found

    def history(self, before: int | None = None) -> Iterator[Commit]:
        """The commits that the next attempt may go on from, the best first: the newest attempt's own, the newest
        first, then the one that it started from and what lies behind that. With `before` as attempt number `before`
        sees it, leaving out itself and whatever came later.
        """
        commits = self.commits()
        for number, _, last in reversed(self.segments(before)):
            own = [c for c in commits if c.attempt == number and (last is None or c.images <= last)]
            yield from sorted(own, reverse=True)

    def segments(self, before: int | None = None) -> list[tuple[int, int, int | None]]:
        """(attempt, first image, last image or None) of the newest lineage, the oldest first: whose rows hold where."""
        attempts = {number: attempt for number, attempt in self.attempts().items() if before is None or number < before}
        found: list[tuple[int, int, int | None]] = []
        number, last = max(attempts, default=0), None
        while number:
            if number not in attempts:
                raise TrainingError(f"{self.run.url}/{_record(number)}: is missing, and a later attempt builds on it")
            start = attempts[number].start
            found.append((number, start.images if start else 0, last))
            number, last = (start.attempt, start.images) if start else (0, None)
        return found[::-1]

    def check_not_superseded(self, attempt: int) -> None:
        """Raises SupersededError if a newer attempt has taken the run over."""
        newest = self.newest_attempt()
        if attempt in self._claimed:
            record = json.loads(self.run.read(_record(attempt)))
            if record["facts"].get("id") != self._claimed[attempt]:
                raise SupersededError(f"{self.run.url}: another process has claimed attempt {attempt} too, and goes on")
        if newest > attempt:
            raise SupersededError(
                f"{self.run.url}: attempt {newest} has taken over this run, so attempt {attempt} stops here; "
                "nothing that it wrote after that will be used"
            )

    # ---- a commit's files

    def write_file(
        self, commit: Commit, name: str, data: bytes | Callable[[], Iterator[bytes | memoryview]]
    ) -> FileDigest:
        """Write a file of a commit that is being made, from bytes or from a function that begins its pieces anew."""
        size, digest = 0, hashlib.sha256()

        def pieces() -> Iterator[bytes | memoryview]:
            nonlocal size, digest
            size, digest = 0, hashlib.sha256()
            for piece in [data] if isinstance(data, bytes) else data():
                digest.update(piece)
                size += len(piece)
                yield piece

        self.run.write(f"{_folder(commit)}/{name}", b"".join(pieces()) if isinstance(data, bytes) else pieces)
        return FileDigest(size, digest.hexdigest())

    def write_manifest(self, commit: Commit, files: dict[str, FileDigest], facts: dict[str, Any] | None = None) -> None:
        """Make the commit, all its files having been written. Raises SupersededError if a newer attempt has begun."""
        self.check_not_superseded(commit.attempt)
        listed = {name: sums._asdict() for name, sums in sorted(files.items())}
        manifest = {"format": FORMAT, "files": listed, "facts": facts or {}}
        self.run.write(f"{_folder(commit)}/{MANIFEST}", json.dumps(manifest, indent=1).encode())

    def write_commit(self, commit: Commit, files: dict[str, bytes]) -> None:
        """Write the files, then the manifest with their sizes and checksums. Raises SupersededError."""
        self.write_manifest(commit, {name: self.write_file(commit, name, data) for name, data in files.items()})

    def read_commit(self, commit: Commit, only: Collection[str] = ()) -> dict[str, bytes]:
        """The files of a commit, or of them those that `only` names.

        Raises TrainingError if one is not what the manifest says, or if that lists anything but safetensors and JSON
        of the commit's own folder.
        """
        return dict(self.files(commit, only))

    def files(self, commit: Commit, only: Collection[str] = ()) -> Iterator[tuple[str, bytes]]:
        """Name and content of the files that `read_commit` gives, one in memory at a time."""
        where = f"{self.run.url}/{_folder(commit)}"
        sums = self.manifest(commit).files
        for name in only or sums:
            if name not in sums:
                raise TrainingError(f"{where}: not a whole checkpoint: it has no {name}")
            try:
                data = self.run.read(f"{_folder(commit)}/{name}")
            except MissingError as error:
                raise TrainingError(f"{where}: not a whole checkpoint: {name} is missing") from error
            if (len(data), hashlib.sha256(data).hexdigest()) != sums[name]:
                raise TrainingError(f"{where}/{name}: its content is not what the manifest says")
            yield name, data

    def manifest(self, commit: Commit) -> Manifest:
        """What a commit consists of. Raises TrainingError if it cannot be read."""
        path = f"{_folder(commit)}/{MANIFEST}"
        where = f"{self.run.url}/{path}"
        try:
            manifest = json.loads(self.run.read(path))
            written = manifest["format"]
            files = {name: FileDigest(listed["bytes"], listed["sha256"]) for name, listed in manifest["files"].items()}
            facts = manifest.get("facts", {})
        except (MissingError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise TrainingError(f"{where}: not the manifest of a checkpoint ({error!r})") from error
        if written != FORMAT:
            raise TrainingError(f"{where}: is in format {written!r}, this version reads {FORMAT}")
        if strange := [name for name in files if not _FILE.fullmatch(name)]:
            raise TrainingError(f"{where}: lists {strange[0]!r}, which is no file of a checkpoint")
        return Manifest(files, facts)

    def orphans(self) -> set[Commit]:
        """What has files but no manifest: it is being written, or its process died."""
        found = {Commit.named(entry.path.split("/")[1]) for entry in self.run.list("checkpoints")}
        if local := self.run.local_path("checkpoints"):  # half-written files are not listed
            found |= {Commit.named(path.name) for path in local.glob("*-*")}
        return {commit for commit in found if commit} - self.commits()

    def delete_commit(self, commit: Commit) -> None:
        """Remove a commit, its manifest first, so that it is never half there."""
        self.run.delete(f"{_folder(commit)}/{MANIFEST}")
        for entry in list(self.run.list(_folder(commit))):
            self.run.delete(entry.path)
        if local := self.run.local_path(_folder(commit)):
            shutil.rmtree(local, ignore_errors=True)


_FILE = re.compile(r"[A-Za-z0-9_-]+\.(safetensors|json)")  # no other folder, nothing that would have to be unpickled


def _record(number: int) -> str:
    return f"attempts/{number:04d}.json"


def _folder(commit: Commit) -> str:
    return f"checkpoints/{commit.name}"
