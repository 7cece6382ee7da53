"""How samples are made, as the command line says it: what jobs.sample and jobs.quality have in common."""

from __future__ import annotations

import argparse
from typing import Any, get_args

from jobs.errors import ConfigError
from trainer.checkpoints.weights import HELP as WEIGHTS
from trainer.models import Model
from trainer.models.diffusion import DiffusionModel
from trainer.samplers import SamplerName, Spacing


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of a sample, and of who makes it."""
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--temperature", type=float, default=1.0, help="standard deviation of the latents' noise")
    parser.add_argument("--weights", default="ema", help=WEIGHTS)
    parser.add_argument("--label", default="", help="class of the images: 3, or 0,1,2 in turn, or all in turn")
    parser.add_argument("--sampler", choices=get_args(SamplerName), help="default: the run's configuration")
    parser.add_argument("--steps", type=int, help="of the sampler")
    parser.add_argument("--spacing", choices=get_args(Spacing), help="of the noise levels")
    parser.add_argument("--guidance", type=float, help="scale of classifier-free guidance; 1 is the model itself")
    parser.add_argument("--batch", type=int, default=64, help="images that a model makes at once")
    parser.add_argument("--processes", type=int, help="of this machine (default: its cores)")


def at_least_one(options: argparse.Namespace, *names: str) -> None:
    """Raises ConfigError if an option is below 1."""
    for name in names:
        if getattr(options, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(options, name)}: at least 1")


def settings_of(options: argparse.Namespace, model: Model) -> dict[str, Any]:
    """What differs from the SamplingConfig of a diffusion. Raises ConfigError for what the model has not."""
    names = ("sampler", "steps", "spacing", "guidance")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if not isinstance(model, DiffusionModel):
        if given:
            raise ConfigError(f"--{next(iter(given))}: is for diffusions; {options.run} is a {type(model).__name__}")
        return {}
    if options.guidance not in (None, 1.0) and not options.label:
        raise ConfigError("--guidance: needs --label, the class to guide to")
    if options.label and not model.diffuser.denoiser.conditioning.conditions:
        raise ConfigError(f"--label: {options.run} is not conditioned on anything")
    if given.get("steps", 1) < 1:
        raise ConfigError(f"--steps {given['steps']}: at least 1")
    return given


def labels_of(options: argparse.Namespace, model: Model) -> tuple[int, ...]:
    """The labels that --label names: `3`, `0,1,2`, or `all`."""
    text: str = options.label
    if not text:
        return ()
    classes = model.spec.classes
    if text == "all" and classes:
        return tuple(range(classes))
    try:
        labels = tuple(int(part) for part in text.split(","))
    except ValueError:
        labels = (-1,)
    if not classes or any(label not in range(classes) for label in labels):
        allowed = (
            f"numbers from 0 to {classes - 1}, separated by commas, or all" if classes else "none: it has no classes"
        )
        raise ConfigError(f"--label {text}: the model knows {allowed}")
    return labels
