"""The whole YAML schema of a run: read, merged with its bases and overridden, checked, told in one line when wrong."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, NonNegativeInt, PositiveInt, ValidationError

from cluster.storage.errors import MissingError
from cluster.storage.storage import Storage, join
from datasets.config import DataConfig
from jobs.config.messages import explain
from jobs.errors import ConfigError
from trainer.checkpoints.weights import width_of
from trainer.config import Config, MayChange
from trainer.errors import TrainingError
from trainer.models import ModelConfig
from trainer.tracking.trackers import TrackingConfig
from trainer.training.loop import TrainerConfig
from trainer.training.optimizer import OptimConfig


class RayConfig(Config):
    """What a run requests from a Ray cluster."""

    workers: PositiveInt | tuple[PositiveInt, PositiveInt] = 1
    """Number of ranks, one GPU each; or [min, max], of which Ray uses what is available (elastic)."""
    gpus_per_worker: NonNegativeInt | None = None
    """GPUs per rank. null: one if the cluster has any."""
    cpus_per_worker: PositiveInt = 1
    """CPU cores per rank."""
    max_failures: NonNegativeInt = 3
    """Failures over the life of the run after which Ray gives up. Pre-emptions do not count."""


def _known_weights(weights: str) -> str:
    try:
        width_of(weights)
    except TrainingError as error:
        raise ValueError(str(error)) from error
    return weights


class RunConfig(Config):
    """A run."""

    run: Annotated[str, MayChange]
    """URL of the run folder: a path, or s3://, gs://, az://. May change on resume to a copy of the folder."""
    seed: NonNegativeInt = 0
    """Seed of the initial weights, the order of the data and the noise."""
    model: ModelConfig
    """The model, chosen by `kind`."""
    init_from: str | None = None
    """URL of a run or an export to take the initial weights from: a model of the same shapes. The optimizer, the
    averages and all counters start from zero."""
    init_weights: Annotated[str, AfterValidator(_known_weights)] = "ema"
    """Weights of `init_from` to use: ema, raw or posthoc:WIDTH."""
    data: DataConfig
    """The images and how they are read."""
    optim: OptimConfig = OptimConfig()
    """Optimizer, learning rate and averages of the weights."""
    trainer: TrainerConfig = TrainerConfig()
    """The training loop."""
    tracking: Annotated[TrackingConfig, MayChange] = TrackingConfig()
    """Where metrics and pictures are sent."""
    ray: Annotated[RayConfig, MayChange] = RayConfig()
    """Resources on a Ray cluster; ignored by jobs.train_local."""


def load_config(path: str, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration of a YAML file with dotted overrides, `optim.lr=1e-4`. Raises ConfigError in one line."""
    values, origins = _read(Path(path), ())
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not re.fullmatch(r"[\w.]+", key):
            raise ConfigError(f"{override!r}: an override is key=value, as in optim.lr=1e-4")
        try:
            value = yaml.load(text, _Loader)
        except yaml.YAMLError as error:
            raise ConfigError(f"{override!r}: the value is not YAML") from error
        for part in reversed(key.split(".")):
            value = {part: value}
        _merge(values, value, origins, "the command line")
    return checked(values, origins, path)


def checked(values: dict[str, Any], origins: dict[str, str], path: str) -> RunConfig:
    """`values` as a RunConfig; `origins` says which file gave a dotted key, for the message."""
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(explain(error, RunConfig, origins, path)) from error


def config_of(run_folder: Storage) -> RunConfig:
    """The configuration that a run folder was made with. Raises ConfigError if it is no run folder."""
    try:
        values = yaml.safe_load(run_folder.read("config.yaml"))
    except MissingError as error:
        raise ConfigError(f"{run_folder.url}: no run here; a run folder has a config.yaml") from error
    return checked(values, {}, join(run_folder.url, "config.yaml"))


def to_yaml(config: RunConfig) -> str:
    """The resolved configuration."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False)


# ---- reading


class _Loader(yaml.SafeLoader):
    """YAML 1.1 takes 1e-4 for a string and off for false; here one is a number and the other a word."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"(true|false|True|False)$"), list("tfTF"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


class _Dumper(yaml.SafeDumper):
    """Quotes what _Loader would take for something else."""


# Both sets of rules: what any reader of YAML would mistake stays in quotes too.
_Dumper.yaml_implicit_resolvers = {
    first: [*yaml.SafeDumper.yaml_implicit_resolvers.get(first, []), *_Loader.yaml_implicit_resolvers.get(first, [])]
    for first in yaml.SafeDumper.yaml_implicit_resolvers.keys() | _Loader.yaml_implicit_resolvers.keys()
}


def _read(path: Path, behind: tuple[Path, ...]) -> tuple[dict[str, Any], dict[str, str]]:
    """The values of a file laid over those of its base, and which file gave each."""
    try:
        values = yaml.load(path.read_text(), _Loader)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        problem = re.sub(r"\s+", " ", str(error))
        raise ConfigError(f"{path}: not YAML: {problem}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a configuration is a YAML mapping with keys such as run, model and data")
    base = values.pop("base", None)
    if base is None:
        merged: dict[str, Any] = {}
        origins: dict[str, str] = {}
    else:
        base_path = path.parent / str(base)
        if base_path.resolve() in (*behind, path.resolve()):
            raise ConfigError(f"{path}: base: {base} leads back to itself")
        merged, origins = _read(base_path, (*behind, path.resolve()))
    _merge(merged, values, origins, str(path))
    return merged, origins


def _merge(
    onto: dict[str, Any], values: dict[str, Any], origins: dict[str, str], source: str, prefix: str = ""
) -> None:
    """Lay `values` over `onto`, in depth. A section with another `kind` replaces the one below it as a whole."""
    for name, value in values.items():
        key = f"{prefix}{name}"
        below = onto.get(name)
        same_kind = (
            isinstance(below, dict) and isinstance(value, dict) and value.get("kind") in (None, below.get("kind"))
        )
        if same_kind:
            assert isinstance(below, dict)
            _merge(below, value, origins, source, f"{key}.")
        else:
            onto[name] = value
            origins[key] = source
