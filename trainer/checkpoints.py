"""The state of a run, saved and loaded: tensors as safetensors, the rest as JSON; nothing loaded is ever unpickled."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from pydantic import PositiveInt
from torch import Tensor

from cluster.storage import Storage
from trainer.config import Config
from trainer.errors import TrainingError
from trainer.journal import Row, write_rows
from trainer.lineage import Attempt, Commit, Lineage
from trainer.ranks import on_rank_zero
from trainer.tensors import pack, unpack

State = dict[str, dict[str, Any]]  # a section is all tensors, or all JSON


class CheckpointConfig(Config):
    """What is kept of the checkpoints."""

    keep: PositiveInt = 2
    """Newest commits that are kept; at least two are."""


class Checkpoints:
    """The commits of one attempt at a run, begun with `begin()`."""

    def __init__(self, run_url: str, config: CheckpointConfig, warn: Callable[[str], None] = print):
        self.run, self.config, self.warn = Storage(run_url), config, warn
        self.lineage = Lineage(self.run)
        self.attempt: Attempt | None = None

    def begin(self, check: Callable[[State], None]) -> State | None:
        """Claim a new attempt and return the state to go on from, None at the start of a run.

        `check` sees the state before the attempt is claimed and raises if this process must not go on from it. A
        commit that is not what its manifest says is passed over, with a warning, for the one before.
        """

        read: list[State] = []  # by the rank that looked; the others read for themselves

        def claim() -> Attempt:
            history = list(self.lineage.history())
            start, state = self._newest_whole(history, check)
            attempt = self.lineage.claim(start)
            # Up to the claim an older attempt could go on committing, and delete what this one starts from.
            newer = list(self.lineage.history(before=attempt.number))
            if newer[:1] != history[:1]:
                start, state = self._newest_whole(newer, check)
                attempt = self.lineage.claim(start)
            read.append(state)
            return attempt

        self.attempt = on_rank_zero(claim)
        if self.attempt.start is None:
            return None
        return read[0] if read else self._state(self.attempt.start)

    def save(self, images: int, state: State, rows: list[Row]) -> Commit:
        """Commit the state after `images` images, and before it the rows of metrics since the last commit.

        Rank 0 writes. Raises TrainingError if a newer attempt has taken over.
        """
        assert self.attempt is not None, "begin() comes first"
        commit = Commit(images, self.attempt.number)

        def write() -> Commit:
            write_rows(self.run, commit, rows)
            self.lineage.write_commit(commit, self._packed(state))
            self._forget_old()
            return commit

        return on_rank_zero(write)

    def _newest_whole(self, history: list[Commit], check: Callable[[State], None]) -> tuple[Commit | None, State]:
        """The best commit of the history that holds, and its state; (None, {}) at the start of a run."""
        tried = []
        for commit in history:
            try:
                state = self._state(commit)
            except TrainingError as error:
                self.warn(f"{error}; going back to the commit before")
                tried.append(commit.name)
                continue
            check(state)
            return commit, state
        if tried:
            raise TrainingError(f"{self.run.url}: none of the checkpoints {', '.join(tried)} can be read")
        attempts = self.lineage.attempts()
        if any(attempt.start for attempt in attempts.values()) or (not attempts and self.lineage.commits()):
            gone = "its checkpoints are" if attempts else "the folder of its attempts is"
            raise TrainingError(
                f"{self.run.url}: the run has begun, but {gone} gone; take another run folder (run=...)"
            )
        return None, {}

    def _forget_old(self) -> None:
        """Keep the newest commits, and the one that the newest attempt started from."""
        history = list(self.lineage.history())
        start = self.lineage.attempts()[self.lineage.newest_attempt()].start
        for commit in history[max(self.config.keep, 2) :]:
            if commit != start:
                self.lineage.delete_commit(commit)

    @staticmethod
    def _packed(state: State) -> dict[str, bytes]:
        files = {}
        for section, content in state.items():
            if content and all(isinstance(value, Tensor) for value in content.values()):
                files[f"{section}.safetensors"] = pack(content)
            else:
                files[f"{section}.json"] = json.dumps(content, indent=1).encode()
        return files

    def _state(self, commit: Commit) -> State:
        """What a commit holds. Raises TrainingError if that cannot be read."""
        state: State = {}
        for name, data in self.lineage.read_commit(commit).items():
            section, kind = name.rsplit(".", 1)
            where = f"{self.run.url}/checkpoints/{commit.name}/{name}"
            state[section] = unpack(where, data) if kind == "safetensors" else _json(where, data)
        return state


def _json(where: str, data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError as error:
        raise TrainingError(f"{where}: is not JSON ({error})") from error
