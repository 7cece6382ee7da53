"""What happens in a run, and who listens: ledger, trackers, Ray."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from trainer.checkpoints.journal import Row

if TYPE_CHECKING:
    from trainer.checkpoints.commit import Commit
    from trainer.training.evaluation import Evaluation

Pictures = dict[str, bytes]
"""PNG files by name."""


class Listener:
    """Told what happens in a run; the null object. Trackers are listeners of rank 0 only."""

    def on_row(self, row: Row, pictures: Pictures) -> None:
        """A row of metrics, and the pictures drawn at the same image count."""

    def on_evaluation(self, evaluation: Evaluation) -> None:
        """An evaluation of the held-out set. On all ranks; may raise to end the run."""

    def before_commit(self) -> None:
        """A commit is about to be made, on rank 0 and in its background thread: write what must not be lost."""

    def on_commit(self, commit: Commit) -> None:
        """A commit was made. On all ranks after the same step, in the thread that trains."""

    def finish(self) -> None:
        """This process stops training; another one may resume the run."""


class Events:
    """Passes each event on to all listeners of this rank, and collects the rows that the next commit stores."""

    def __init__(self, listeners: Sequence[Listener], warn: Callable[[str], None] = print):
        self.listeners, self.warn = list(listeners), warn
        self.began = time.monotonic()
        self.common: Row = {}
        """Figures that every row has."""
        self.rows: list[Row] = []
        """Rows since the last commit."""

    def row(self, row: Row, pictures: Pictures | None = None) -> None:
        now = datetime.now(UTC)
        row = {"time": now.isoformat(timespec="seconds"), "elapsed": time.monotonic() - self.began} | self.common | row
        self.rows.append(row)
        for listener in self.listeners:
            listener.on_row(row, pictures or {})

    def evaluation(self, evaluation: Evaluation) -> None:
        for listener in self.listeners:
            listener.on_evaluation(evaluation)

    def before_commit(self) -> None:
        for listener in self.listeners:
            listener.before_commit()

    def commit(self, commit: Commit) -> None:
        for listener in self.listeners:
            listener.on_commit(commit)

    def take_rows(self, unreported: Row, images: int) -> list[Row]:
        """The rows since the last commit, with a last one for what none of them has reported; none are left."""
        rows, self.rows = self.rows, []
        return [*rows, {"images": images} | unreported] if unreported else rows

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Finishes every listener at the end of the block. Their errors are warnings: they must not hide its own."""
        try:
            yield
        finally:
            for listener in self.listeners:
                try:
                    listener.finish()
                except Exception as error:
                    self.warn(f"{type(listener).__name__} failed at the end of the run: {error}")
