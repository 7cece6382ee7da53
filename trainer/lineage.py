"""Who wrote what in a run folder: attempts, commits, and which of them make the history of the newest one.

    <run>/attempts/0002.json                       made once (If-None-Match): number 2, and the commit it started from
    <run>/checkpoints/000000012800-0002/...        files of a commit, after 12800 images, by attempt 2
    <run>/checkpoints/000000012800-0002/manifest.json   written last: it is the commit; what has none does not exist

A newer attempt supersedes: whoever loads follows the newest attempt and, behind it, the commits that it started from.
An older process that finds a newer attempt stops at its next commit, and what it may still write is never loaded. There
is no clock and no lease.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import time
import uuid
from collections.abc import Iterator
from typing import Any, NamedTuple

from cluster.storage import MissingError, Storage
from trainer.errors import TrainingError

MANIFEST = "manifest.json"


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


class Lineage:
    """The attempts and commits below a run's URL."""

    def __init__(self, run: Storage):
        self.run = run

    def attempts(self) -> list[Attempt]:
        """All attempts, the oldest first."""
        found = []
        for entry in self.run.list("attempts"):
            record = json.loads(self.run.read(entry.path))
            start = Commit.named(record["start"]) if record["start"] else None
            found.append(Attempt(record["attempt"], start, record["facts"]))
        return sorted(found)

    def newest_attempt(self) -> int:
        """The number of the newest attempt; 0 if there is none. Reads no object."""
        numbers = [int(entry.path.rsplit("/", 1)[-1].removesuffix(".json")) for entry in self.run.list("attempts")]
        return max(numbers, default=0)

    def claim(self, start: Commit | None, facts: dict[str, Any] | None = None) -> Attempt:
        """Begin a new attempt that goes on from `start`. Of several that try at once each gets a number of its own."""
        began = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        # The id makes every record different, so that nobody takes another's for its own.
        facts = {"host": socket.gethostname(), "began": began, "id": uuid.uuid4().hex} | (facts or {})
        number = self.newest_attempt() + 1
        while True:
            record = {"attempt": number, "start": start.name if start else None, "facts": facts}
            if self.run.create(f"attempts/{number:04d}.json", json.dumps(record, indent=1).encode()):
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

    def history(self) -> Iterator[Commit]:
        """The commits that the next attempt may go on from, the best first: the newest attempt's own, the newest
        first, then the one that it started from and what lies behind that.
        """
        attempts = {attempt.number: attempt for attempt in self.attempts()}
        commits = self.commits()
        number, limit = max(attempts, default=0), None
        while number:
            own = [c for c in commits if c.attempt == number and (limit is None or c.images <= limit)]
            yield from sorted(own, reverse=True)
            start = attempts[number].start if number in attempts else None
            if start is None:
                return
            number, limit = start.attempt, start.images

    def reigns(self) -> list[tuple[int, int, int | None]]:
        """(attempt, first image, last image or None) of the newest lineage, the oldest first: whose rows hold where."""
        attempts = {attempt.number: attempt for attempt in self.attempts()}
        found: list[tuple[int, int, int | None]] = []
        number, last = max(attempts, default=0), None
        while number:
            start = attempts[number].start
            found.append((number, start.images if start else 0, last))
            number, last = (start.attempt, start.images) if start else (0, None)
        return found[::-1]

    def check_not_superseded(self, attempt: int) -> None:
        """Raises TrainingError if a newer attempt has taken the run over."""
        newest = self.newest_attempt()
        if newest > attempt:
            raise TrainingError(
                f"{self.run.url}: attempt {newest} has taken over this run, so attempt {attempt} stops here; "
                "nothing that it wrote after that will be used"
            )

    # ---- a commit's files

    def write_commit(self, commit: Commit, files: dict[str, bytes]) -> None:
        """Write the files, then the manifest with their sizes and checksums. Raises TrainingError if superseded."""
        folder = f"checkpoints/{commit.name}"
        listed = {}
        for name, data in files.items():
            self.run.write(f"{folder}/{name}", data)
            listed[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        self.check_not_superseded(commit.attempt)
        self.run.write(f"{folder}/{MANIFEST}", json.dumps({"format": 1, "files": listed}, indent=1).encode())

    def read_commit(self, commit: Commit) -> dict[str, bytes]:
        """The files of a commit. Raises TrainingError if one is not what the manifest says."""
        folder = f"checkpoints/{commit.name}"
        try:
            listed = json.loads(self.run.read(f"{folder}/{MANIFEST}"))["files"]
            files = {name: self.run.read(f"{folder}/{name}") for name in listed}
        except (MissingError, ValueError, KeyError, TypeError) as error:
            raise TrainingError(f"{self.run.url}/{folder}: not a whole checkpoint: {error}") from error
        for name, facts in listed.items():
            if len(files[name]) != facts["bytes"] or hashlib.sha256(files[name]).hexdigest() != facts["sha256"]:
                raise TrainingError(f"{self.run.url}/{folder}/{name}: its content is not what the manifest says")
        return files

    def delete_commit(self, commit: Commit) -> None:
        """Remove a commit, its manifest first, so that it is never half there."""
        folder = f"checkpoints/{commit.name}"
        self.run.delete(f"{folder}/{MANIFEST}")
        for entry in list(self.run.list(folder)):
            self.run.delete(entry.path)
