"""What is written in the background: a checkpoint by a thread of each rank, snapshots of averages by rank 0."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

from trainer.checkpoints.commit import Commit, CommitFolder, FileDigest
from trainer.checkpoints.staging import RankShare
from trainer.checkpoints.tensor_files import LAYOUT, Layout, blocks, layout_json, merged
from trainer.distributed.ranks import broadcast_object, gather_object, portable
from trainer.errors import TrainingError

Complete = Callable[[Commit, dict[str, FileDigest]], None]


class _Written(NamedTuple):
    """What one rank reports of its share."""

    files: dict[str, FileDigest]
    layout: Layout
    failure: Exception | None


class CheckpointThread(threading.Thread):
    """Writes this rank's share; when all ranks have, rank 0 calls `complete`, which makes the commit.

    `outcome`, the same on all ranks: None if there is a commit, an OSError if the store failed, else another error.
    """

    def __init__(self, folder: CommitFolder, share: RankShare, group: Any, complete: Complete):
        super().__init__(name=f"checkpoint {folder.commit.name}", daemon=True)
        self.folder, self.share, self.group, self.complete = folder, share, group, complete
        self.outcome: Exception | None = None
        self.abandoned = False  # nobody waits for it any longer: it must not make the commit
        self.start()

    @property
    def commit(self) -> Commit:
        """The commit that it makes."""
        return self.folder.commit

    def run(self) -> None:
        try:
            self.outcome = self._write()
        except Exception as error:  # of the group: another rank is gone
            self.outcome = error
        except BaseException as error:  # a thread that ends without an outcome would count as a commit
            self.outcome = TrainingError(f"{self.folder.url}: {type(error).__name__}: {' '.join(str(error).split())}")

    def _write(self) -> Exception | None:
        failure: Exception | None = None
        files: dict[str, FileDigest] = {}
        layout: Layout = {}
        try:
            layout = self.share.layout()
            for name, tensors in self.share.files.items():
                values = {key: placed.value for key, placed in tensors.items()}
                files[name] = self.folder.write_file(name, partial(blocks, values))
            for name, text in self.share.texts.items():
                files[name] = self.folder.write_file(name, text)
        except Exception as error:
            failure = error
        parts = gather_object(_Written(files, layout, failure and portable(failure)), self.group)
        outcome: Exception | None = None
        if parts:  # rank 0
            failures = [part.failure for part in parts if part.failure]
            # an error that is not the store's ends the run on all ranks, so it goes before those that are retried
            outcome = min(failures, key=lambda error: isinstance(error, OSError), default=None)
            if outcome is None:
                try:
                    self._complete(parts)
                except Exception as error:
                    failure = outcome = error
        shared = broadcast_object(outcome and portable(outcome), self.group)
        if shared is None or failure is None or isinstance(failure, OSError) != isinstance(shared, OSError):
            return shared
        return failure  # with its traceback

    def _complete(self, parts: list[_Written]) -> None:
        if self.abandoned:
            raise TrainingError(f"checkpoint {self.commit.name} was abandoned")
        files = {name: digest for part in parts for name, digest in part.files.items()}
        layout = merged(part.layout for part in parts)
        files[LAYOUT] = self.folder.write_file(LAYOUT, layout_json(layout))
        self.complete(self.commit, files)


class BackgroundWrites:
    """Small writes of rank 0 to the run folder, one at a time, all done before the next commit is made.

    What the store refuses is lost, with a warning.
    """

    def __init__(self, warn: Callable[[str], None]):
        self.warn = warn
        self._pool = ThreadPoolExecutor(1, "run folder writer")
        self._last: Future[None] | None = None

    def submit(self, what: str, write: Callable[[], None]) -> None:
        """Write when the write before is done, for which this waits: at most one holds its data in memory."""
        self.wait()
        self._last = self._pool.submit(self._write, what, write)

    def wait(self) -> None:
        """Return when everything submitted is written, or lost. Raises what is not the store's failure."""
        if self._last is not None:
            self._last.result()

    def _write(self, what: str, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            self.warn(f"{what} was not stored, training continues: {error}")
