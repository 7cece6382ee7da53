"""Standard output that cannot be written to must not end a run."""

from __future__ import annotations

import os
import sys


def say(line: str) -> None:
    """Write a line to stdout. Where that fails (its reader has left, its disk is full), say so once and discard it."""
    from tqdm import tqdm

    try:
        tqdm.write(line, file=sys.stdout)  # above a bar; not by print, which Ray Train makes write twice
        sys.stdout.flush()
    except (OSError, ValueError) as error:  # ValueError: it was closed, or cannot encode the line
        reason = error.strerror if isinstance(error, OSError) else str(error)
        discard_stdout()
        if sys.stderr is not None:
            print(f"stdout cannot be written to ({reason}); the work continues without it", file=sys.stderr)


def discard_stdout() -> None:
    """Discard what is written to stdout from now on, and what has been written and not flushed."""
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, sys.stdout.fileno())
    except (OSError, ValueError, AttributeError):
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (for the life of the process)
    finally:
        os.close(null)
