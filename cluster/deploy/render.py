"""Render a manifest with the settings of a cluster, for kubectl, ray or sbatch.

    python -m cluster.deploy.render kuberay/job.yaml [--settings FILE] [name=value ...] | kubectl apply -f -

A manifest is a template with ${name} for a setting ($$ for a dollar sign). Missing and unknown settings are errors.
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any

import yaml

FOLDER = Path(__file__).parent
MANIFESTS = ("kuberay/cluster.yaml", "kuberay/job.yaml", "aws.yaml", "slurm.sh")


class SettingsError(ValueError):
    """A missing, unknown or invalid setting; the message is one line."""


class _WithoutAliases(yaml.SafeDumper):
    """Repeats values instead of using YAML aliases, for readability."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def read_settings(path: Path, overrides: Sequence[str] = ()) -> dict[str, str]:
    """The settings of a file with `name=value` overrides. Raises SettingsError."""
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise SettingsError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise SettingsError(f"{path}: not a YAML mapping of names to values")
    for override in overrides:
        name, equals, value = override.partition("=")
        if not equals:
            raise SettingsError(f"{override!r}: an override is name=value, as in workers_max=8")
        values[name] = value
    known = yaml.safe_load((FOLDER / "settings.yaml").read_text())
    for name, value in values.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise SettingsError(f"{path}: unknown setting {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        if isinstance(value, dict | list) or re.search(r"[\"'\\\n$`]", str(value)):
            raise SettingsError(f"{path}: {name}: {value!r} must be a plain word, number or URL")
    return {name: str(value) for name, value in values.items()}


def render(manifest: str, settings: dict[str, str]) -> str:
    """The text of a manifest with the settings inserted; a RayJob gets the cluster spec of kuberay/cluster.yaml."""
    text = (FOLDER / manifest).read_text()
    try:
        ranks = {f"ranks_{end}": int(settings[f"workers_{end}"]) * int(settings["gpus"]) for end in ("min", "max")}
        text = Template(text).substitute(settings, **ranks)
    except KeyError as error:
        raise SettingsError(f"{manifest} needs the setting {error.args[0]!r}") from error
    except ValueError as error:
        raise SettingsError(f"workers_min, workers_max and gpus must be numbers: {error}") from error
    if manifest != "kuberay/job.yaml":
        return text
    job, *others = yaml.safe_load_all(text)
    cluster, *more = yaml.safe_load_all(render("kuberay/cluster.yaml", settings))
    job["spec"]["rayClusterSpec"] = cluster["spec"]
    return yaml.dump_all([job, *others, *more], Dumper=_WithoutAliases, sort_keys=False, width=1000)


def documents(manifest: str, settings: dict[str, str]) -> list[dict[str, Any]]:
    """The parsed documents of a rendered YAML manifest."""
    return list(yaml.safe_load_all(render(manifest, settings)))


def main(arguments: Sequence[str]) -> None:
    """Print a manifest."""
    parser = argparse.ArgumentParser(
        prog="python -m cluster.deploy.render", description="Print a manifest with the settings of a cluster."
    )
    parser.add_argument("manifest", choices=MANIFESTS)
    parser.add_argument("overrides", nargs="*", metavar="name=value")
    parser.add_argument("--settings", type=Path, default=FOLDER / "settings.yaml", help="default: %(default)s")
    options = parser.parse_args(arguments)
    try:
        print(render(options.manifest, read_settings(options.settings, options.overrides)), end="")
    except SettingsError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
