"""Daemon threads for read-ahead: they never keep the process from exiting."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class Background:
    """A thread pool of daemon threads; concurrent.futures would join its threads at exit, even during a slow read."""

    def __init__(self, threads: int):
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._threads = threads
        self._started: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._closed = False

    def submit(self, call: Callable[..., T], *arguments: Any) -> Future[T]:
        """Run a call in a thread. After `close` the future is cancelled at once."""
        future: Future[T] = Future()
        with self._lock:
            if self._closed:
                future.cancel()
                return future
            if len(self._started) < self._threads:
                thread = threading.Thread(target=self._work, name="read-ahead", daemon=True)
                thread.start()
                self._started.append(thread)
            self._calls.put((future, lambda: call(*arguments)))
        return future

    def close(self) -> None:
        """Cancel calls that have not started and wait up to 1 s for the others. Other threads may still submit."""
        with self._lock:
            self._closed = True
            with contextlib.suppress(queue.Empty):
                while (item := self._calls.get_nowait()) is not None:
                    item[0].cancel()
            for _ in self._started:
                self._calls.put(None)
        deadline = time.monotonic() + 1
        for thread in self._started:
            thread.join(timeout=max(deadline - time.monotonic(), 0))

    def _work(self) -> None:
        while (item := self._calls.get()) is not None:
            future, call = item
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)
