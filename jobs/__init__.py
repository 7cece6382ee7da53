"""What a person runs or submits; the only folder that puts the others together."""

from __future__ import annotations

import sys
from types import TracebackType


def _quiet_interrupt(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


if sys.argv[0] == "-m":  # `python -m jobs.NAME`, which imports for seconds before it can handle Ctrl-C itself
    sys.excepthook = _quiet_interrupt
