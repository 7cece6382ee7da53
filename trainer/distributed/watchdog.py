"""A rank that hangs ends, with the stacks of its threads in the log, instead of waiting for ever."""

from __future__ import annotations

import contextlib
import faulthandler
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


class Watchdog:
    """Inside its block `beat` must be called now and then: `seconds` after the last time all stacks are printed and
    the process ends, by a timer that does not need the interpreter.
    """

    def __init__(self, seconds: float):
        self.seconds = seconds
        self.beats = self.seen = 0
        self.lock = threading.Lock()
        self.ended = threading.Event()
        self.thread: threading.Thread | None = None

    def beat(self) -> None:
        """The rank lives."""
        self.beats += 1

    def rest(self) -> None:
        """Something begins that may take long; the next beat ends the rest."""
        with self.lock:
            self.seen = self.beats
            faulthandler.cancel_dump_traceback_later()

    def watching(self, batches: Iterable[T]) -> Iterator[T]:
        """The same, with a beat for each."""
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
        """Set the timer anew as long as there are beats."""
        while not self.ended.wait(min(self.seconds / 10, 1.0)):
            with self.lock:
                if self.beats != self.seen:
                    self.seen = self.beats
                    self._arm()

    def _arm(self) -> None:
        with contextlib.suppress(ValueError, OSError):  # no stderr to write to
            faulthandler.dump_traceback_later(self.seconds, exit=True, file=sys.__stderr__ or sys.stderr)
