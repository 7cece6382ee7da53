"""What a run tells those who follow it: ledger, trackers, Ray."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainer.checkpoints.commit import Commit
    from trainer.checkpoints.journal import Row
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
