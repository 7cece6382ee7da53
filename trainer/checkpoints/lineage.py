"""Attempts at a run, and which commits form the history of the newest attempt.

    <run>/attempts/0002.json             record of attempt 2, created once (If-None-Match): the commit it started from
    <run>/checkpoints/<commit>/...       commit.py

A newer attempt supersedes an older one: a reader follows the newest attempt and, behind it, the commits that it started
from. An older process that finds a newer attempt stops at its next commit, and nothing it may still write is ever
loaded. There is no clock and no lease. Where If-None-Match is not atomic (OpenStack Swift; it is on S3, Google, Azure
and local disks) two processes may claim one number: the one whose record was overwritten stops at its next commit.
"""

from __future__ import annotations

import json
import re
import socket
import time
import uuid
from collections.abc import Iterator
from typing import Any, NamedTuple

from cluster.storage.errors import TooLargeError
from cluster.storage.json_files import MOST_JSON_BYTES
from cluster.storage.storage import Storage
from trainer.checkpoints.commit import MANIFEST, Commit, CommitFolder, FileDigest
from trainer.checkpoints.records import parse_record
from trainer.errors import SupersededError, TrainingError


class Attempt(NamedTuple):
    """One process's claim on the run (all ranks together are one process here)."""

    number: int
    start: Commit | None  # the commit it resumed from
    facts: dict[str, Any]  # where and with what it ran; what a rollback changed (noise salt, learning-rate factor)


class Lineage:
    """The attempts and commits below a run's URL."""

    def __init__(self, run: Storage):
        self.run = run
        self._read: dict[int, Attempt] = {}  # a record never changes, so each is read once
        self._claimed: dict[int, str] = {}  # the ids of the attempts claimed by this object

    def attempts(self) -> dict[int, Attempt]:
        """All attempts by number, the oldest first. Raises TrainingError if a record cannot be read."""
        return {number: self._attempt(number) for number in self._numbers()}

    def newest_attempt(self) -> int:
        """The number of the newest attempt; 0 if there is none. Reads no object."""
        return max(self._numbers(), default=0)

    def _numbers(self) -> list[int]:
        found = (re.fullmatch(r"attempts/(\d{4,9})\.json", entry.path, re.ASCII) for entry in self.run.list("attempts"))
        return sorted(int(match[1]) for match in found if match)

    def _attempt(self, number: int) -> Attempt:
        if number not in self._read:
            path = _record(number)
            try:
                record = parse_record("attempt", self.run.read(path, MOST_JSON_BYTES))
                start = Commit.named(record["start"]) if record["start"] else None
            except (ValueError, TooLargeError) as error:
                raise TrainingError(f"{self.run.url}/{path}: not the record of an attempt ({error})") from error
            self._read[number] = Attempt(number, start, record["facts"])
        return self._read[number]

    def claim(self, start: Commit | None, facts: dict[str, Any] | None = None) -> Attempt:
        """Claim a new attempt that resumes from `start`. Concurrent callers get different numbers."""
        began = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        # The id makes every record unique, so that no process takes another's record for its own.
        facts = {"host": socket.gethostname(), "began": began, "id": uuid.uuid4().hex} | (facts or {})
        number = self.newest_attempt() + 1
        while True:
            record = {"attempt": number, "start": start.name if start else None, "facts": facts}
            if self.run.create(_record(number), json.dumps(record, indent=1).encode()):
                self._claimed[number] = facts["id"]
                return Attempt(number, start, facts)
            number += 1

    def commits(self) -> set[Commit]:
        """Every commit of every attempt."""
        found = set()
        for entry in self.run.list("checkpoints"):
            parts = entry.path.split("/")
            commit = Commit.named(parts[1]) if len(parts) == 3 and parts[2] == MANIFEST else None
            if commit:
                found.add(commit)
        return found

    def history(self, before: int | None = None) -> Iterator[Commit]:
        """The commits of the newest lineage, newest first: those of the newest attempt, then the commit it started
        from and those behind it. `before`: as if attempt `before` and all later ones did not exist.
        """
        commits = self.commits()
        for number, _, last in reversed(self.segments(before)):
            own = [c for c in commits if c.attempt == number and (last is None or c.images <= last)]
            yield from sorted(own, reverse=True)

    def segments(self, before: int | None = None) -> list[tuple[int, int, int | None]]:
        """(attempt, first image, last image) of the newest lineage, oldest first; None: the newest attempt's end.

        Rows and snapshots in (first, last] count if that attempt wrote them.
        """
        attempts = {number: attempt for number, attempt in self.attempts().items() if before is None or number < before}
        found: list[tuple[int, int, int | None]] = []
        number, last = max(attempts, default=0), None
        while number:
            if number not in attempts:
                raise TrainingError(f"{self.run.url}/{_record(number)}: is missing, and a later attempt builds on it")
            start = attempts[number].start
            if start and start.attempt >= number:
                raise TrainingError(f"{self.run.url}/{_record(number)}: starts from a later attempt, {start.attempt}")
            found.append((number, start.images if start else 0, last))
            number, last = (start.attempt, start.images) if start else (0, None)
        return found[::-1]

    def check_not_superseded(self, attempt: int) -> None:
        """Raises SupersededError if a newer attempt has taken the run over."""
        newest = self.newest_attempt()
        if attempt in self._claimed:
            self._read.pop(attempt, None)
            if self._attempt(attempt).facts.get("id") != self._claimed[attempt]:
                raise SupersededError(
                    f"{self.run.url}: another process has claimed attempt {attempt} too, and continues"
                )
        if newest > attempt:
            raise SupersededError(
                f"{self.run.url}: attempt {newest} has taken over this run, so attempt {attempt} stops here; "
                "nothing it wrote after that will be used"
            )

    # ---- commits

    def folder(self, commit: Commit) -> CommitFolder:
        """The files of a commit."""
        return CommitFolder(self.run, commit)

    def complete(self, commit: Commit, files: dict[str, FileDigest]) -> None:
        """Make the commit, all its files having been written. Raises SupersededError if a newer attempt has begun."""
        self.check_not_superseded(commit.attempt)
        self.folder(commit).write_manifest(files)

    def orphans(self) -> set[Commit]:
        """Incomplete checkpoints, files without a manifest: still being written, or left by a process that died."""
        found = {Commit.named(entry.path.split("/")[1]) for entry in self.run.list("checkpoints")}
        if local := self.run.local_path("checkpoints"):  # half-written files are not listed
            found |= {Commit.named(path.name) for path in local.glob("*-*")}
        return {commit for commit in found if commit} - self.commits()


def _record(number: int) -> str:
    return f"attempts/{number:04d}.json"
