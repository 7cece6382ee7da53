"""The command-line options of a sample, shared by jobs.sample and jobs.quality."""

from __future__ import annotations

import argparse
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from jobs.errors import ConfigError
from trainer.checkpoints.weights import HELP as WEIGHTS
from trainer.distributed.device import ReportPrecision
from trainer.models import KINDS, Model
from trainer.models.base import takes_labels
from trainer.sampling import class_numbers, options_for


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of a sample, those that only some models have among them, and where it is made."""
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--temperature", type=float, default=1.0, help="standard deviation of the latents' noise")
    parser.add_argument("--weights", default="ema", help=WEIGHTS)
    parser.add_argument(
        "--label", default="", help="class of the images, by number or name: 3, or cat,dog in turn, or all in turn"
    )
    for name, field in model_options().items():
        choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
        metavar = "|".join(choices) if choices else name.upper()
        text = f"{field.description or name} Default: the run's configuration."
        if name == "size":
            parser.add_argument(_flag(name), nargs=2, metavar=("HEIGHT", "WIDTH"), help=text)
        else:
            parser.add_argument(_flag(name), metavar=metavar, help=text)
    parser.add_argument(
        "--precision", choices=get_args(ReportPrecision), default="fp32", help="fp32: float32 without TF32; bf16"
    )
    parser.add_argument("--batch", type=int, default=64, help="images that a process makes at once")
    parser.add_argument("--processes", type=int, help="on this machine (default: one per GPU, else one per core)")


def model_options() -> dict[str, FieldInfo]:
    """The options of `sample` that some kinds of model declare, by name."""
    return {name: field for kind in KINDS for name, field in kind.SamplingOptions.model_fields.items()}


def sampling_options(
    options: argparse.Namespace, model: Model, others: bool = False, negative: bool = False
) -> dict[str, Any]:
    """All options of the model's `sample`: those given, the others as in its configuration.

    `others`, `negative`: whether there are other conditions than a label, and a negative prompt. Raises ConfigError.
    """
    given = {name: getattr(options, name) for name in model_options() if getattr(options, name) is not None}
    try:
        chosen = options_for(model, given, bool(options.label) or others, negative)
    except ValidationError as error:
        first = error.errors()[0]
        if first["loc"]:
            raise ConfigError(f"{_flag(str(first['loc'][0]))} {first['input']}: {first['msg']}") from error
        raise _option_error(first["ctx"]["error"]) from error
    except ValueError as error:
        raise _option_error(error) from error
    return chosen.model_dump()


def labels_of(options: argparse.Namespace, model: Model) -> tuple[int, ...]:
    """The class numbers that --label gives: `3`, `cat`, `0,1,2`, or `all`. `name:3` is the class called 3, `number:3`
    the one with that number. Raises ConfigError for what the model does not take.
    """
    text: str = options.label
    if not text:
        return ()
    if not takes_labels(model):
        raise ConfigError(f"--label {text}: {options.run} is not conditioned on labels")
    if text == "all":
        return tuple(range(model.spec.classes))
    parts = [text] if text.removeprefix("name:") in model.class_names else text.split(",")  # names may have commas
    labels = [_label(part, model) for part in parts]
    try:
        return tuple(class_numbers(model, labels))
    except ValueError as error:
        reason = str(error).removeprefix("label: ").removeprefix(f"{text}: ")
        raise ConfigError(f"--label {text}: {reason}") from error


def _label(text: str, model: Model) -> int | str:
    """A class by number or name. Raises ConfigError where a text is the number of one class and the name of another."""
    names = model.class_names
    if text.startswith("name:"):
        return text.removeprefix("name:")
    digits = text.removeprefix("number:")
    if not digits.isdecimal():
        return text
    number = int(digits)
    if digits == text and text in names and number != names.index(text):
        if number not in range(model.spec.classes):
            return text
        raise ConfigError(
            f"--label {text}: class number {names.index(text)} is called {text}; write name:{text} for it, or "
            f"number:{text} for class number {text}"
        )
    return number


def _option_error(error: ValueError) -> ConfigError:
    """For a message that begins with the name of an option."""
    name, _, reason = str(error).partition(": ")
    return ConfigError(f"{_flag(name)}: {reason}")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
