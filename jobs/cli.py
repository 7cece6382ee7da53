"""The door of every command: what a person can mend is one line, everything else is a bug with its traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from cluster.storage.errors import StorageError
from datasets.errors import DataError
from jobs.errors import ConfigError
from trainer.errors import TrainingError

USER_ERRORS = (ConfigError, DataError, StorageError, TrainingError)


def run(main: Callable[[Sequence[str]], int | None]) -> None:
    """Run `main(arguments)` and exit with its status: 0, 1 after a one-line error, 130 after Ctrl-C.

    With --debug among the arguments an error shows its traceback.
    """
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    try:
        status = main(arguments) or 0
        if "torch" in sys.modules:  # else there are no ranks, and it takes seconds to import
            from trainer.distributed.ranks import shutdown

            shutdown()
    except USER_ERRORS as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    except BrokenPipeError:  # the reader of our output (head, less) has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    sys.exit(status)
