"""Read a run's configuration: a YAML file, merged with its bases and overridden by the command line."""

from __future__ import annotations

import re
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from cluster.storage.errors import MissingError
from cluster.storage.storage import Storage, join
from jobs.config.messages import explain
from jobs.config.overrides import parse_override
from jobs.config.schema import RunConfig
from jobs.config.yaml_dialect import MOST_BYTES, Dumper, parse_yaml
from jobs.errors import ConfigError

UNSET = "unset"  # keys of the base that a file takes away
Values = dict[str, Any]
Origins = dict[str, str]  # which file gave a dotted key, for messages


def load_config(path: str, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration of a YAML file with dotted overrides, `optim.lr=1e-4`. Raises ConfigError in one line."""
    values, origins = _read(Path(path).expanduser(), ())
    for override in overrides:
        given = parse_override(override)
        _unset(values, given.pop(UNSET, ()), "the command line")
        _merge(values, given, origins, "the command line")
    return _validated(values, origins, path)


def config_of(run_folder: Storage) -> RunConfig:
    """The configuration of a run folder. Raises ConfigError if it is not one."""
    path = join(run_folder.url, "config.yaml")
    try:
        values = parse_yaml(run_folder.read("config.yaml", MOST_BYTES).decode())
    except MissingError as error:
        raise ConfigError(f"{run_folder.url}: no run here; a run folder has a config.yaml") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise _not_yaml(path, error) from error
    return config_from(values, path)


def config_from(values: Values, path: str) -> RunConfig:
    """The configuration of nested values that were read from `path`. Raises ConfigError in one line."""
    return _validated(values, {}, path)


def to_yaml(config: RunConfig) -> str:
    """The whole configuration, defaults included; `load_config` reads the same from it."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=Dumper, sort_keys=False)


def _validated(values: Values, origins: Origins, path: str) -> RunConfig:
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(explain(error, RunConfig, origins, path)) from error


def _read(path: Path, above: tuple[Path, ...]) -> tuple[Values, Origins]:
    """The values of a file merged into those of its base. `above`: the files that have this one as a base."""
    try:
        values = parse_yaml(_text(path, may_be_pipe=not above))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise _not_yaml(path, error) from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a configuration is a YAML mapping with keys such as run, model and data")
    base, unset = values.pop("base", None), values.pop(UNSET, ())
    merged: Values = {}
    origins: Origins = {}
    if base is not None:
        base_path = path.parent / Path(str(base)).expanduser()
        if base_path.resolve() in (*above, path.resolve()):
            raise ConfigError(f"{path}: base: {base} leads back to itself")
        merged, origins = _read(base_path, (*above, path.resolve()))
    _unset(merged, unset, str(path))
    _merge(merged, values, origins, str(path))
    return merged, origins


def _text(path: Path, may_be_pipe: bool) -> str:
    """The text of a file, as much of it as a configuration may have and one byte more. Raises OSError."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not (may_be_pipe and stat.S_ISFIFO(mode)):
        raise OSError("Is a directory" if stat.S_ISDIR(mode) else "a pipe or device, not a file")
    with path.open("rb") as file:
        return file.read(MOST_BYTES + 1).decode()


def _not_yaml(path: Path | str, error: Exception) -> ConfigError:
    problem = re.sub(r"\s+", " ", str(error))[:300]
    return ConfigError(f"{path}: not YAML: {problem}")


def _unset(target: Values, keys: object, source: str) -> None:
    """Remove dotted keys that a base has set, so that they have their defaults. Raises ConfigError for others."""
    for key in [keys] if isinstance(keys, str) else keys if isinstance(keys, list | tuple) else [keys]:
        section: Any = target
        *path, name = str(key).split(".")
        for part in path:
            section = section.get(part) if isinstance(section, dict) else None
        if not isinstance(section, dict) or name not in section:
            raise ConfigError(f"{source}: {UNSET}: {key}: no base sets this key")
        del section[name]


def _merge(target: Values, values: Values, origins: Origins, source: str, prefix: str = "") -> None:
    """Merge `values` into `target`, recursively. A section with another `kind` replaces the old one as a whole."""
    for name, value in values.items():
        key, old = f"{prefix}{name}", target.get(name)
        if isinstance(old, dict) and isinstance(value, dict) and value.get("kind") in (None, old.get("kind")):
            _merge(old, value, origins, source, f"{key}.")
        else:
            target[name] = value
            origins[key] = source
