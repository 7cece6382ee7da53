"""Saves and restores the state of a run: all ranks in parallel, saving in the background.

Terms: a checkpoint is the saved state after some number of images; when all its files are written and its manifest
lists them it is a commit (commit.py), the only thing a run is ever resumed from. An attempt is one process's part of
the run (lineage.py). At most one checkpoint is being written; while it is, or while the store cannot be written to,
the next one waits and training continues.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Any

import torch.distributed as dist

from cluster.storage.storage import Storage
from trainer.checkpoints.bounds import Bounds
from trainer.checkpoints.commit import Commit, FileDigest
from trainer.checkpoints.journal import Row, read_metrics, write_rows
from trainer.checkpoints.lineage import Attempt, Lineage
from trainer.checkpoints.reading import SavedState, newest_intact
from trainer.checkpoints.retention import CheckpointConfig, delete_old
from trainer.checkpoints.staging import HostCopy, State
from trainer.checkpoints.writing import BackgroundWrites, CheckpointThread
from trainer.distributed.node import Node, this_node
from trainer.distributed.ranks import all_gather_object, new_gloo_group, on_rank_zero, portable, rank
from trainer.errors import DamagedError, DivergedError, TrainingError

PATIENCE = 3600.0  # seconds that a rank waits for another one's part of a checkpoint, written or read
DRAIN = 60.0  # seconds that a process which fails waits for a checkpoint that is being written


class Checkpointer:
    """The commits of one attempt at a run, which begins with `claim()`.

    As a context manager it waits up to DRAIN seconds for a checkpoint being written when the block fails.
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
        self.background = BackgroundWrites(warn)
        self.attempt: Attempt | None = None
        self.saved: SavedState | None = None  # what the attempt starts from
        self.host_copy = HostCopy()
        self.group: dist.ProcessGroup | None = None
        """The ranks of this attempt, with a timeout of PATIENCE: to wait for what rank 0 does with the store."""
        self.node = Node([rank()], None)
        self.started = 0
        self.newest: Commit | None = None
        """The newest commit of this attempt's history, one being written included; None: there is none."""
        self._bounds: Bounds | None = None  # read at the first commit of an attempt
        self._provenance: dict[str, Any] | None = None
        self._check: Callable[[dict[str, Any]], None] = lambda sections: None
        self._damaged: dict[Commit, str] = {}  # commits that could not be restored
        self._writing: CheckpointThread | None = None
        self._failure: Exception | None = None  # of the last checkpoint, if it is not a commit
        self._rows: list[tuple[Commit, list[Row]]] = []  # of checkpoints that are not commits yet
        self._committed_rows: list[Row] = []  # of the commit at `newest`
        self._changes: dict[str, Any] = {}  # what a rollback changes in the next attempt
        self._bad_from: int | None = None  # images from which on the steps were bad that a rollback leaves behind

    # ---- loading

    def claim(
        self, check: Callable[[dict[str, Any]], None], provenance: dict[str, Any] | None = None
    ) -> SavedState | None:
        """Claim a new attempt and return what it starts from, for `restore`; None at the start of a run.

        `check` gets the JSON sections before the attempt is claimed and raises if this process must not resume from
        them. A commit that cannot be read is passed over, with a warning, for the one before. All ranks together; they
        wait for rank 0 as long as the store takes. `provenance` goes into the attempt's record.
        """
        self._check, self._provenance = check, provenance
        # New ones, as a thread that was abandoned before a rollback may still use the old ones.
        self.group, self.host_copy = new_gloo_group(PATIENCE), HostCopy()
        self.node = this_node(PATIENCE, self.group)
        return self._claim()

    def _claim(self) -> SavedState | None:
        def claim() -> tuple[Attempt, SavedState | None]:
            facts = _inherited(self.lineage) | self._changes | {"provenance": self._provenance}
            history = list(self.lineage.history())
            saved = self._newest(history)
            attempt = self.lineage.claim(saved.commit if saved else None, facts)
            # Up to the claim an older attempt could make commits, and delete the one that this one starts from.
            newer = list(self.lineage.history(before=attempt.number))
            if newer[:1] != history[:1]:
                saved = self._newest(newer)
                attempt = self.lineage.claim(saved.commit if saved else None, facts)
            return attempt, saved

        self.attempt, self.saved = on_rank_zero(claim, self.group)
        if self.saved is not None:
            self.saved.node = self.node
        self.newest, self._committed_rows = self.attempt.start, []
        self._bounds = None
        number = self.attempt.number
        if rank() == 0 and self.run.local_path() is not None:
            self._discard(commit for commit in self.lineage.orphans() if commit.attempt < number)
        return self.saved

    def _newest(self, history: list[Commit]) -> SavedState | None:
        def check(saved: SavedState) -> None:
            self._check(saved.sections)

        return newest_intact(self.lineage, history, check, self.warn, self._damaged, self._bad_from)

    def restore(self, into: Callable[[SavedState], None]) -> None:
        """Call `into` with what the attempt starts from. All ranks together.

        If a checksum fails on any rank, a new attempt is claimed that starts from the commit before, and `into` is
        called again with that. A store that corrupts what it sends is asked twice before a checksum fails.
        """
        begun = self.attempt
        while self.saved is not None:
            failure: Exception | None = None
            try:
                into(self.saved)
            except Exception as error:
                failure = error
            failures = [error for error in all_gather_object(failure and portable(failure), self.group) if error]
            if not failures:
                return
            if other := [error for error in failures if not isinstance(error, DamagedError)]:
                raise failure if failure and not isinstance(failure, DamagedError) else other[0]
            self._damaged[self.saved.commit] = str(failures[0])
            if rank() == 0:
                self.warn(f"{failures[0]}; going back to the commit before")
            try:
                self._claim()
            except TrainingError:  # none is intact: the next process should look at all of them again
                if begun is not None and rank() == 0:
                    self.lineage.claim(begun.start, begun.facts)
                raise

    @property
    def restarts(self) -> int:
        """Number of attempts at the run before this one."""
        return self.attempt.number - 1 if self.attempt else 0

    @property
    def noise_salt(self) -> int:
        """Other than 0 after a rollback: selects other noise."""
        return int(self._fact("noise_salt", 0))

    @property
    def lr_factor(self) -> float:
        """Learning-rate multiplier after a rollback."""
        return float(self._fact("lr_factor", 1.0))

    def roll_back(self, reason: DivergedError, images: int, lr_factor: float | None) -> None:
        """Let the next `claim` go back to the last good commit, with other noise and a lower learning rate.

        Good is what was committed before `images` images, after which the trouble showed: from a commit made just then
        the very next step was bad. Raises `reason` if the run was rolled back before, or must not be (None).
        """
        if self.noise_salt or lr_factor is None:
            raise reason
        self._changes = {"noise_salt": 1, "lr_factor": lr_factor, "rolled_back": str(reason)}
        self._bad_from = images
        self._rows, self._failure = [], None
        self.warn(f"{reason}; going back once, with other noise and {lr_factor:g} times the learning rate")

    def _fact(self, name: str, default: Any) -> Any:
        return self.attempt.facts.get(name, default) if self.attempt else default

    # ---- saving

    def save(self, images: int, state: State, rows: list[Row]) -> Commit:
        """Commit the state after `images` images, with the rows of metrics since the last commit.

        Raises SupersededError if a newer attempt has taken over, StorageError if it cannot be written.
        """
        self.ready(wait=True)
        commit = self.start(images, state, rows)
        self.wait()
        return commit

    def start(self, images: int, state: State, rows: list[Row]) -> Commit:
        """The same in the background, when `ready()`. The state may change as soon as this returns."""
        assert self.attempt is not None, "claim() comes first"
        assert self._writing is None, "at most one at a time"
        commit = Commit(images, self.attempt.number)
        self._rows.append((commit, rows))
        all_rows = list(self._rows)
        keep_all = not state["progress"].get("healthy", True)  # whoever resumes may have to go further back

        def complete(commit: Commit, files: dict[str, FileDigest]) -> None:
            self._complete(commit, files, all_rows, keep_all)

        self.started += 1
        self.newest, self._committed_rows = commit, rows
        share = self.host_copy.take(state)
        self._writing = CheckpointThread(self.lineage.folder(commit), share, self.group, complete)
        return commit

    @property
    def written(self) -> int:
        """Number of checkpoints that this rank has written, or failed to."""
        in_progress = self._writing is not None and self._writing.is_alive()
        return self.started - in_progress

    def settle(self, written: int) -> None:
        """Announce the last checkpoint if all ranks have written it: `written`, the same on all of them."""
        if self._writing is not None and written >= self.started:
            self._announce(self._writing)

    def ready(self, wait: bool = False) -> bool:
        """Whether no checkpoint is being written; `wait`: until none is."""
        if self._writing is not None and wait:
            self._announce(self._writing)
        return self._writing is None

    def wait(self) -> None:
        """Return when the last checkpoint is a commit. Raises the error that prevented it."""
        self.ready(wait=True)
        if self._failure is not None:
            raise self._failure

    def add_rows(self, images: int, rows: list[Row]) -> None:
        """Store the rows of rank 0 that follow the newest commit, made at `images`. All ranks together."""
        assert self.attempt is not None, "claim() comes first"
        place = Commit(images, self.attempt.number)

        def write() -> None:
            if rows:  # only rank 0 has the rows of pictures
                self.before_commit()
                write_rows(self.run, place, [*self._committed_rows, *rows])

        on_rank_zero(write, self.group)

    def _announce(self, writing: CheckpointThread) -> None:
        writing.join()
        self._writing, self._failure = None, writing.outcome
        if writing.outcome is None:
            self._rows = []
            self.on_commit(writing.commit)
        elif isinstance(writing.outcome, OSError):
            self.newest = None
            self._discard([writing.commit])
            self.warn(f"checkpoint {writing.commit.name} was not made, training continues: {writing.outcome}")
        else:
            raise writing.outcome

    def _discard(self, commits: Iterable[Commit]) -> None:
        """Delete incomplete checkpoints on a local disk, which they may have filled; rank 0, as far as it can."""
        if rank() == 0 and self.run.local_path() is not None:
            with contextlib.suppress(OSError):
                for commit in commits:
                    self.lineage.folder(commit).delete()

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, *failure: object) -> None:
        if self._writing is not None:
            self._writing.join(DRAIN)
            self._writing.abandoned = True
            self._writing = None

    # ---- on rank 0, in the thread that writes

    def _complete(
        self, commit: Commit, files: dict[str, FileDigest], rows: list[tuple[Commit, list[Row]]], keep_all: bool
    ) -> None:
        self.background.wait()
        self.before_commit()
        for place, some in rows:
            write_rows(self.run, place, some)
        self.lineage.complete(commit, files)
        if keep_all:
            return
        try:
            if self._bounds is None:
                self._bounds = Bounds(read_metrics(self.run))
            else:
                self._bounds.add(row for _, some in rows for row in some)
            delete_old(self.lineage, commit.attempt, self.config, self._bounds)
        except (OSError, TrainingError) as error:
            self.warn(f"old checkpoints were not all removed: {error}")


def _inherited(lineage: Lineage) -> dict[str, Any]:
    """What an earlier attempt's rollback changed for all later ones."""
    attempts = lineage.attempts()
    facts = attempts[max(attempts)].facts if attempts else {}
    return {name: facts[name] for name in ("noise_salt", "lr_factor") if name in facts}
