"""A way out of long computations: drawing pictures takes seconds to minutes, a request to stop cannot wait for it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

_check: Callable[[], bool] | None = None


class StopRequestedError(Exception):
    """The computation was abandoned because a stop was requested."""


def interruption_point() -> None:
    """Called between the steps of a long computation; raises StopRequestedError where one may be abandoned."""
    if _check is not None and _check():
        raise StopRequestedError


@contextlib.contextmanager
def interruptible(check: Callable[[], bool]) -> Iterator[None]:
    """Inside the block, interruption points ask `check` whether to abandon the computation."""
    global _check
    before, _check = _check, check
    try:
        yield
    finally:
        _check = before
