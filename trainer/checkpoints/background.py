"""Small writes to the run folder in the background, in order, which are done before the next commit is made."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class BackgroundWrites:
    """Writes one thing at a time; what the store refuses is lost, with a warning."""

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
