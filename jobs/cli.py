"""Entry point of every command: user errors print one line; anything else keeps its traceback."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from tqdm import tqdm

from cluster.storage.errors import StorageError
from datasets.errors import DataError
from jobs.errors import ConfigError
from jobs.limits import limit_met
from trainer.errors import TrainingError
from trainer.tracking.streams import discard_stdout

EXIT_SIGPIPE = 141  # as a shell reports it
USER_ERRORS = (ConfigError, DataError, StorageError, TrainingError)


def run(main: Callable[[Sequence[str]], int | None]) -> None:
    """Call `main(arguments)` and exit with its status; 1 after a user error or a limit of the machine,
    130 after Ctrl-C, 141 where the reader of stdout has left.

    With --debug among the arguments user errors keep their traceback as well.
    """
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    _settle_streams()
    try:
        status = main(arguments) or 0
        if "torch" in sys.modules:  # otherwise there are no ranks, and importing it takes seconds
            from trainer.distributed.ranks import shutdown

            shutdown()
        sys.stdout.flush()
    except USER_ERRORS as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    except BrokenPipeError:  # the reader of stdout (head, less) has exited
        discard_stdout()
        status = EXIT_SIGPIPE
    except (OSError, MemoryError, RuntimeError) as error:
        reason = limit_met(error)
        if debug or reason is None:
            raise
        print(f"error: {reason}", file=sys.stderr)
        with contextlib.suppress(OSError):
            discard_stdout()  # which may be what is full
        status = 1
    sys.exit(status)


def _settle_streams() -> None:
    """Give the process streams that every text can be written to: closed ones discard it, ASCII ones escape it."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  (for the life of the process)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


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


def check_at_least_one(options: argparse.Namespace, *names: str) -> None:
    """Raises ConfigError if an option is given and below 1."""
    for name in names:
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {value}: at least 1")


def progress_bar(total: int | None, unit: str = "images", initial: int = 0, what: str | None = None) -> tqdm[Any]:
    """A progress bar on stderr; silent where that is no terminal."""
    return tqdm(total=total, initial=initial, unit=f" {unit}", desc=what, disable=not sys.stderr.isatty())
