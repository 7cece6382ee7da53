"""Ends a rank that hangs, with the stacks of its threads in the log, instead of letting it wait forever."""

from __future__ import annotations

import contextlib
import faulthandler
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


class Watchdog:
    """Inside its block `beat` must be called regularly: `seconds` after the last beat a timer that needs no
    interpreter prints all stacks and exits the process.
    """

    def __init__(self, seconds: float):
        self.seconds = seconds
        self.beats = self.seen = 0
        self.lock = threading.Lock()
        self.ended = threading.Event()
        self.thread: threading.Thread | None = None

    def beat(self) -> None:
        """The rank made progress."""
        self.beats += 1

    def rest(self) -> None:
        """Stop the timer until the next beat."""
        with self.lock:
            self.seen = self.beats
            faulthandler.cancel_dump_traceback_later()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """The block may take long without a beat."""
        self.rest()
        yield
        self.beat()

    def watching(self, batches: Iterable[T]) -> Iterator[T]:
        """The same batches, with a beat for each."""
        for batch in batches:
            self.beat()
            yield batch

    def __enter__(self) -> Watchdog:
        self._arm()
        self.thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self.ended.set()
        assert self.thread is not None
        self.thread.join()
        faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        """Re-arm the timer while there are beats."""
        while not self.ended.wait(min(self.seconds / 10, 1.0)):
            with self.lock:
                if self.beats != self.seen:
                    self.seen = self.beats
                    self._arm()

    def _arm(self) -> None:
        with contextlib.suppress(ValueError, OSError):  # no stderr to write to
            faulthandler.dump_traceback_later(self.seconds, exit=True, file=sys.__stderr__ or sys.stderr)
