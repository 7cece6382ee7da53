"""Entry point of every command: user errors print one line; anything else keeps its traceback."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence

from cluster.storage.errors import StorageError
from datasets.errors import DataError
from jobs.errors import ConfigError
from trainer.errors import TrainingError

USER_ERRORS = (ConfigError, DataError, StorageError, TrainingError)


def run(main: Callable[[Sequence[str]], int | None]) -> None:
    """Call `main(arguments)` and exit with its status; 1 after a user error, 130 after Ctrl-C.

    With --debug among the arguments user errors keep their traceback as well.
    """
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    try:
        status = main(arguments) or 0
        if "torch" in sys.modules:  # otherwise there are no ranks, and importing it takes seconds
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
    except BrokenPipeError:  # the reader of stdout (head, less) has exited
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    sys.exit(status)


def command_parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """The parser of `python -m jobs.NAME`, described by the first line of the module's docstring `doc`."""
    description = re.split(r":? python -m |\n", doc or "")[0]
    return argparse.ArgumentParser(prog=f"python -m jobs.{name}", description=description)


def config_parser(name: str, doc: str | None, optional: bool = False) -> argparse.ArgumentParser:
    """A parser with the arguments `config` and `overrides`, for `load_config`."""
    parser = command_parser(name, doc)
    parser.add_argument("config", nargs="?" if optional else None, help="YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override by dotted key: optim.lr=1e-4")
    return parser
