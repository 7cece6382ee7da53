"""The state of a run, saved and loaded: tensors as safetensors, the rest as JSON; nothing loaded is ever unpickled."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import safetensors.torch
from pydantic import PositiveInt
from torch import Tensor

from cluster.storage import Storage
from trainer.config import Config
from trainer.errors import TrainingError
from trainer.journal import Row, write_rows
from trainer.lineage import Attempt, Commit, Lineage
from trainer.ranks import on_rank_zero

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
            start, state = self._newest_whole(check)
            read.append(state)
            return self.lineage.claim(start)

        self.attempt = on_rank_zero(claim)
        if self.attempt.start is None:
            return None
        return read[0] if read else self._unpacked(self.lineage.read_commit(self.attempt.start))

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

    def _newest_whole(self, check: Callable[[State], None]) -> tuple[Commit | None, State]:
        """The newest commit that holds, and its state; (None, {}) at the start of a run."""
        tried = []
        for commit in self.lineage.history():
            try:
                state = self._unpacked(self.lineage.read_commit(commit))
            except TrainingError as error:
                self.warn(f"{error}; going back to the commit before")
                tried.append(commit.name)
                continue
            check(state)
            return commit, state
        if tried:
            raise TrainingError(f"{self.run.url}: none of the checkpoints {', '.join(tried)} can be read")
        return None, {}

    def _forget_old(self) -> None:
        """Keep the newest commits, and the one that the newest attempt started from."""
        history = list(self.lineage.history())
        start = self.lineage.attempts()[-1].start
        for commit in history[max(self.config.keep, 2) :]:
            if commit != start:
                self.lineage.delete_commit(commit)

    @staticmethod
    def _packed(state: State) -> dict[str, bytes]:
        files = {}
        for section, content in state.items():
            if content and all(isinstance(value, Tensor) for value in content.values()):
                tensors = {name: value.detach().cpu().contiguous() for name, value in content.items()}
                files[f"{section}.safetensors"] = safetensors.torch.save(tensors)
            else:
                files[f"{section}.json"] = json.dumps(content, indent=1).encode()
        return files

    @staticmethod
    def _unpacked(files: dict[str, bytes]) -> State:
        state: State = {}
        for name, data in files.items():
            section, kind = name.rsplit(".", 1)
            state[section] = safetensors.torch.load(data) if kind == "safetensors" else json.loads(data)
        return state
