"""The state of a run, saved: tensors as safetensors, the rest as JSON.

A checkpoint is copied to host memory and written in the background, by all ranks in parallel; at most one is on its
way. While one is, or while the store cannot be written to, the next one waits for its turn and training goes on.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from pydantic import NonNegativeInt, PositiveInt

from cluster.storage.storage import Storage
from trainer.checkpoints.journal import Row, write_rows
from trainer.checkpoints.lineage import Attempt, Commit, FileDigest, Lineage
from trainer.checkpoints.reading import inherited, newest_whole, read_state
from trainer.checkpoints.retention import forget_old
from trainer.checkpoints.staging import LAYOUT, Share, Stage, State, merged, stream
from trainer.config import Config
from trainer.distributed.ranks import broadcast_object, gather_object, new_gloo_group, on_rank_zero
from trainer.errors import DivergedError, SupersededError, TrainingError

PATIENCE = 3600.0  # seconds after which a rank no longer waits for another one's part of a checkpoint
DRAIN = 60.0  # seconds that a process which fails gives to the checkpoint on its way


class CheckpointConfig(Config):
    """Which checkpoints are kept. The newest, and the one that the newest attempt started from, always are."""

    keep: PositiveInt = 2
    """Number of newest checkpoints kept; at least two are."""
    keep_best: NonNegativeInt = 1
    """Number of checkpoints kept for their bound on the held-out set, the lowest first. Only bounds on the same set are
    compared."""
    keep_every: NonNegativeInt = 0
    """Keep the first checkpoint at or after each multiple of this many images for good; 0: none."""


class _Part(NamedTuple):
    """What one rank tells of its share of a checkpoint."""

    files: dict[str, FileDigest]
    layout: dict[str, dict[str, Any]]
    failure: str | None


class _Writing(threading.Thread):
    """A checkpoint on its way. `outcome` is its end, the same on all ranks: None if it is whole, else the error."""

    def __init__(self, commit: Commit, write: Callable[[], Exception | None]):
        super().__init__(name=f"checkpoint {commit.name}", daemon=True)
        self.commit, self.write = commit, write
        self.outcome: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self.outcome = self.write()
        except Exception as error:
            self.outcome = error


class Checkpoints:
    """The commits of one attempt at a run, begun with `begin()`.

    Used as a context it gives the checkpoint on its way a last while when the block fails.
    """

    def __init__(
        self,
        run_url: str,
        config: CheckpointConfig,
        warn: Callable[[str], None] = print,
        before_commit: Callable[[], None] = lambda: None,
        on_commit: Callable[[Commit], None] = lambda commit: None,
    ):
        """`before_commit` is called on rank 0, in the background, before a commit is made; `on_commit` with every
        commit, on all ranks after the same step, by the thread that trains.
        """
        self.run, self.config, self.warn = Storage(run_url), config, warn
        self.before_commit, self.on_commit = before_commit, on_commit
        self.lineage = Lineage(self.run)
        self.attempt: Attempt | None = None
        self.stage = Stage()
        self.group: Any = None
        self.started = 0
        self.newest: int | None = None
        """Images of the newest commit of this attempt's history, one in the making included; None: there is none."""
        self._committed_rows: list[Row] = []  # of the commit at `newest`
        self.scores: dict[Commit, float | None] = {}  # of the commits, as retention has read them
        self._writing: _Writing | None = None
        self._failure: Exception | None = None  # of the last one, if it was not made
        self._rows: list[tuple[Commit, list[Row]]] = []  # of checkpoints that are not whole yet
        self._changes: dict[str, Any] = {}  # what a rollback changes in the next attempt
        self._trouble: int | None = None  # images after which the steps were bad that it leaves behind

    # ---- loading

    def begin(self, check: Callable[[State], None]) -> State | None:
        """Claim a new attempt and return the state to go on from, None at the start of a run.

        `check` sees the state before the attempt is claimed and raises if this process must not go on from it. A
        commit that is not what its manifest says is passed over, with a warning, for the one before.
        """

        read: list[State] = []  # by the rank that looked; the others read for themselves

        def claim() -> Attempt:
            facts = inherited(self.lineage) | self._changes
            history = list(self.lineage.history())
            start, state = newest_whole(self.lineage, history, check, self.warn, self._trouble)
            attempt = self.lineage.claim(start, facts)
            # Up to the claim an older attempt could go on committing, and delete what this one starts from.
            newer = list(self.lineage.history(before=attempt.number))
            if newer[:1] != history[:1]:
                start, state = newest_whole(self.lineage, newer, check, self.warn, self._trouble)
                attempt = self.lineage.claim(start, facts)
            read.append(state)
            return attempt

        self.attempt = on_rank_zero(claim)
        self.group = self.group or new_gloo_group(PATIENCE)
        self.newest, self._committed_rows = (self.attempt.start.images if self.attempt.start else None), []
        if self.attempt.start is None:
            return None
        return read[0] if read else read_state(self.lineage, self.attempt.start)

    @property
    def restarts(self) -> int:
        """How many attempts at the run there were before this one."""
        return self.attempt.number - 1 if self.attempt else 0

    @property
    def noise_salt(self) -> int:
        """Makes the noise of an attempt after a rollback another one."""
        return self._fact("noise_salt", 0)

    @property
    def lr_factor(self) -> float:
        """By which a rollback has lowered the learning rate."""
        return self._fact("lr_factor", 1.0)

    def roll_back(self, reason: DivergedError, images: int, lr_factor: float | None) -> None:
        """Let the next `begin` go back to the last good commit, with other noise and a lower learning rate.

        Good is what was committed before `images` images, after which the trouble showed: from a commit made just then
        the very next step was bad. Raises `reason` if the run has gone back before, or is not to (None).
        """
        if self.noise_salt or lr_factor is None:
            raise reason
        self._changes = {"noise_salt": 1, "lr_factor": lr_factor, "rolled_back": str(reason)}
        self._trouble = images
        self._rows, self._failure = [], None
        self.warn(f"{reason}; going back once, with other noise and {lr_factor:g} times the learning rate")

    def _fact(self, name: str, otherwise: Any) -> Any:
        return self.attempt.facts.get(name, otherwise) if self.attempt else otherwise

    # ---- saving

    def save(self, images: int, state: State, rows: list[Row]) -> Commit:
        """Commit the state after `images` images, and before it the rows of metrics since the last commit.

        Raises SupersededError if a newer attempt has taken over, StorageError if it cannot be written.
        """
        self.ready(wait=True)
        commit = self.start(images, state, rows)
        self.wait()
        return commit

    def start(self, images: int, state: State, rows: list[Row]) -> Commit:
        """The same in the background, when `ready()`. The state may change as soon as this returns."""
        assert self.attempt is not None, "begin() comes first"
        assert self._writing is None, "at most one at a time"
        commit = Commit(images, self.attempt.number)
        self._rows.append((commit, rows))
        share, all_rows = self.stage.take(state), list(self._rows)
        keep_all = not state["progress"].get("healthy", True)  # whoever goes on may have to go further back
        self.started += 1
        self.newest, self._committed_rows = images, rows
        self._writing = _Writing(commit, lambda: self._write(commit, share, all_rows, keep_all))
        return commit

    @property
    def written(self) -> int:
        """How many checkpoints this rank has written, or failed to."""
        under_way = self._writing is not None and self._writing.is_alive()
        return self.started - under_way

    def settle(self, written: int) -> None:
        """Announce the last checkpoint if all ranks have written it, as `written` says, to all of them at one step."""
        if self._writing is not None and written >= self.started:
            self._announce(self._writing)

    def ready(self, wait: bool = False) -> bool:
        """Whether none is on its way; with `wait`, when that has ended."""
        if self._writing is not None and wait:
            self._announce(self._writing)
        return self._writing is None

    def wait(self) -> None:
        """Return when the last checkpoint is whole; raises what went wrong with it."""
        self.ready(wait=True)
        if self._failure is not None:
            raise self._failure

    def add_rows(self, images: int, rows: list[Row]) -> None:
        """Store rows of metrics that follow the newest commit, made at `images`. All ranks together."""
        assert self.attempt is not None, "begin() comes first"
        if rows:
            place = Commit(images, self.attempt.number)

            def write() -> None:
                self.before_commit()
                write_rows(self.run, place, [*self._committed_rows, *rows])

            on_rank_zero(write)

    def _announce(self, writing: _Writing) -> None:
        writing.join()
        self._writing, self._failure = None, writing.outcome
        if writing.outcome is None:
            self._rows = []
            self.on_commit(writing.commit)
        elif isinstance(writing.outcome, OSError):
            self.newest = None
            self.warn(f"checkpoint {writing.commit.name} was not made, training goes on: {writing.outcome}")
        else:
            raise writing.outcome

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *failure: object) -> None:
        if self._writing is not None:
            self._writing.join(DRAIN)
            self._writing = None

    # ---- in the background

    def _write(
        self, commit: Commit, share: Share, rows: list[tuple[Commit, list[Row]]], keep_all: bool
    ) -> Exception | None:
        """Write this rank's share; rank 0 makes the commit when all have. Returns the same on all ranks."""
        failure: Exception | None = None
        files: dict[str, FileDigest] = {}
        try:
            for name, tensors in share.tensors.items():
                files[name] = self.lineage.write_file(commit, name, partial(stream, tensors))
            for name, text in share.texts.items():
                files[name] = self.lineage.write_file(commit, name, text)
        except Exception as error:
            failure = error
        parts = gather_object(_Part(files, share.layout, str(failure) if failure else None), self.group)
        outcome: Exception | None = failure
        if parts:  # rank 0
            outcome = failure or next((OSError(part.failure) for part in parts if part.failure), None)
            try:
                if outcome is None:
                    self._commit(commit, parts, rows, keep_all)
            except Exception as error:
                outcome = error
        shared = broadcast_object(_portable(outcome), self.group)
        return outcome or shared

    def _commit(self, commit: Commit, parts: list[_Part], rows: list[tuple[Commit, list[Row]]], keep_all: bool) -> None:
        self.before_commit()
        for place, some in rows:
            write_rows(self.run, place, some)
        files = {name: sums for part in parts for name, sums in part.files.items()}
        if layout := merged([part.layout for part in parts]):
            files[LAYOUT] = self.lineage.write_file(commit, LAYOUT, json.dumps(layout).encode())
        scores = [row["validation/nats"] for _, some in rows for row in some if "validation/nats" in row]
        self.lineage.write_manifest(commit, files, {"validation/nats": scores[-1]} if scores else {})
        self.scores[commit] = scores[-1] if scores else None
        if keep_all:
            return
        try:
            forget_old(self.lineage, commit.attempt, self.config, self.scores)
        except (OSError, TrainingError) as error:
            self.warn(f"old checkpoints were not all removed: {error}")


def _portable(outcome: Exception | None) -> Exception | None:
    """An error as the other ranks can receive it."""
    if outcome is None or isinstance(outcome, SupersededError):
        return outcome
    return OSError(str(outcome)) if isinstance(outcome, OSError) else TrainingError(str(outcome))
