"""The command-line options for captions: --prompt, --prompt-file and --negative."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from cluster.storage.storage import Storage, absolute
from jobs.errors import ConfigError
from trainer.models import Model
from trainer.prompts import Captions, parse_prompts, text_names

MOST_BYTES = 16 << 20  # of a prompt file


def add_prompt_options(parser: argparse.ArgumentParser) -> None:
    """The options for models that are conditioned on captions."""
    parser.add_argument(
        "--prompt",
        action="append",
        default=[],
        metavar="[NAME=]TEXT",
        help="caption of the images, repeatable: --count images of each; NAME= where a model has several captions",
    )
    parser.add_argument("--prompt-file", default="", metavar="FILE", help="more prompts, one a line; path or URL")
    parser.add_argument(
        "--negative",
        action="append",
        default=[],
        metavar="[NAME=]TEXT",
        help="caption that --guidance leads away from, in the place of the unconditional estimate",
    )


def prompts_of(options: argparse.Namespace, model: Model) -> tuple[Captions, ...]:
    """The prompts that --prompt and --prompt-file give. Raises ConfigError for what the model does not take."""
    texts = list(options.prompt)
    if options.prompt_file:
        if not text_names(model):
            raise ConfigError(f"--prompt-file: {options.run} is not conditioned on captions")
        texts += read_prompts(options.prompt_file)
    return tuple(_captions("prompt", texts, options.run, model))


def negative_of(options: argparse.Namespace, model: Model) -> Captions:
    """The caption that --negative gives. Raises ConfigError for what the model does not take, and for several."""
    found = _captions("negative", options.negative, options.run, model)
    if len(found) > 1:
        raise ConfigError(f"--negative: given {len(found)} times; one holds for all prompts")
    return found[0] if found else {}


def read_prompts(url: str) -> list[str]:
    """The lines of a file that are not blank. Raises ConfigError if there are none, or if it is not UTF-8 text."""
    folder, _, name = absolute(url).rpartition("/")
    storage = Storage(folder or "/")
    entry = storage.stat(name)
    if entry is not None and entry.size > MOST_BYTES:
        raise ConfigError(f"--prompt-file {url}: has {entry.size:,} bytes; at most {MOST_BYTES:,}")
    try:
        lines = storage.read(name).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ConfigError(f"--prompt-file {url}: is not UTF-8 text (byte {error.start})") from error
    prompts = [line for line in lines if line.strip()]
    if not prompts:
        raise ConfigError(f"--prompt-file {url}: has no prompt, which is a line that is not blank")
    return prompts


def _captions(argument: str, texts: Sequence[str], run: str, model: Model) -> list[Captions]:
    """Prompts as they are written on a command line, one by one. Raises ConfigError."""
    try:
        return parse_prompts(model, texts, argument)
    except ValueError as error:
        raise ConfigError(f"--{str(error).replace(': the model is', f': {run} is', 1)}") from error
