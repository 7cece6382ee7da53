"""The events of a run: passed on to its listeners, and the rows of metrics collected for the next commit."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from trainer.checkpoints.journal import Row
from trainer.tracking.listener import Listener, Pictures

if TYPE_CHECKING:
    from trainer.checkpoints.commit import Commit
    from trainer.training.evaluation import Evaluation


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

    def take_rows(self) -> list[Row]:
        """The rows since the last commit; none are left."""
        rows, self.rows = self.rows, []
        return rows

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
