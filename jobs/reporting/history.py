"""What a run folder records about its run, read as far as it can be read."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import yaml

from cluster.storage.errors import MissingError, StorageError
from cluster.storage.storage import Storage
from jobs.errors import ConfigError
from trainer.checkpoints.commit import Commit
from trainer.checkpoints.journal import Row, read_metrics
from trainer.checkpoints.lineage import Attempt, Lineage
from trainer.errors import TrainingError

T = TypeVar("T")
UNREADABLE = (  # what damaged files raise
    *(TrainingError, StorageError, yaml.YAMLError),
    *(ValueError, KeyError, TypeError, AttributeError, RecursionError),
)
Values = dict[str, Any]

_SECRETS = (  # in URLs: user:password@, and signatures in a query
    (re.compile(r"(\w+://)[^/\s@'\"]+@"), r"\1...@"),
    (re.compile(r"(https?://[^\s?'\",]+\?)[^\s'\",]+"), r"\1..."),
)


class Picture(NamedTuple):
    """A PNG of the run folder."""

    images: int
    path: str
    size: int  # bytes


class RunHistory(NamedTuple):
    """A run, finished or not, as its folder has it."""

    storage: Storage
    name: str
    config: Values
    config_text: str  # YAML, without credentials in URLs
    rows: list[Row]
    attempts: dict[int, Attempt]
    lineage: list[int]  # the attempts that made the newest commit, oldest first
    reached: dict[int, int]  # images of the newest commit of each attempt, by its metrics
    evaluations: dict[str, Values]  # the reports of evaluations/, by name
    pictures: dict[str, list[Picture]]  # by name, oldest first
    images_seen: int | None  # of the finished run; None if it is not finished
    parameters: int | None
    problems: list[str]  # one line for each part that could not be read

    @property
    def url(self) -> str:
        return self.storage.url

    @property
    def budget(self) -> int | None:
        """Images to train on, by the configuration."""
        trainer = self.config.get("trainer")
        images = trainer.get("images") if isinstance(trainer, dict) else None
        return images if isinstance(images, int) else None

    @property
    def images(self) -> int:
        """Images of the newest row of metrics."""
        return max((int(row["images"]) for row in self.rows), default=0)

    @property
    def is_finished(self) -> bool:
        return self.images_seen is not None and self.images_seen >= (self.budget or 0)


def number(row: Values, key: str) -> float | None:
    """A finite figure of a row; None if there is none."""
    value = row.get(key)
    finite = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if finite and value is not None else None


def read_history(url: str) -> RunHistory:
    """Read a run folder, also of a run in progress. Raises ConfigError if there is no run, StorageError.

    Only the configuration must be readable; what else is not is listed in `problems`.
    """
    run = Storage(url)
    try:
        text = without_secrets(run.read("config.yaml").decode(errors="replace"))
    except MissingError as error:
        raise ConfigError(f"{run.url}: no run here; a run folder has a config.yaml") from error
    problems: list[str] = []

    def attempt(what: str, read: Callable[[], T], otherwise: T) -> T:
        try:
            return read()
        except UNREADABLE as error:
            reason = " ".join(str(error).split())
            problems.append(f"{what} cannot be read: {reason if run.url in reason else f'{run.url}: {reason}'}")
            return otherwise

    lineage = Lineage(run)
    return RunHistory(
        storage=run,
        name=run.url.rstrip("/").rpartition("/")[2],
        config=attempt("config.yaml", lambda: dict(yaml.safe_load(text)), {}),
        config_text=text,
        rows=attempt("metrics", lambda: _rows(run), []),
        attempts=attempt("attempts", lineage.attempts, {}),
        lineage=attempt("attempts", lambda: [number for number, _, _ in lineage.segments()], []),
        reached=attempt("metrics", lambda: _reached(run), {}),
        evaluations=attempt("evaluations", lambda: _evaluations(run, problems), {}),
        pictures=attempt("pictures", lambda: _pictures(run), {}),
        images_seen=attempt("final/config.json", lambda: _images_seen(run), None),
        parameters=attempt("checkpoints", lambda: _parameters(lineage), None),
        problems=problems,
    )


def without_secrets(text: str) -> str:
    """The text without user names, passwords and signatures in URLs: a report is made to be passed on."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def _rows(run: Storage) -> list[Row]:
    return [row for row in read_metrics(run) if isinstance(row, dict) and isinstance(row.get("images"), int)]


def _reached(run: Storage) -> dict[int, int]:
    reached: dict[int, int] = {}
    for entry in run.list("metrics"):
        if commit := Commit.named(entry.path.rpartition("/")[2].removesuffix(".jsonl")):
            reached[commit.attempt] = max(commit.images, reached.get(commit.attempt, 0))
    return reached


def _evaluations(run: Storage, problems: list[str]) -> dict[str, Values]:
    found = {}
    for entry in run.list("evaluations"):
        if not entry.path.endswith(".json"):
            continue
        try:
            report = json.loads(without_secrets(run.read(entry.path).decode()))
        except ValueError as error:
            problems.append(f"{run.url}/{entry.path} cannot be read: {error}")
            continue
        if isinstance(report, dict):
            found[entry.path.removeprefix("evaluations/").removesuffix(".json")] = report
    return found


def _pictures(run: Storage) -> dict[str, list[Picture]]:
    found = defaultdict(list)
    for entry in run.list("pictures"):
        if match := re.fullmatch(r"pictures/(.+)-(\d{12,})\.png", entry.path):
            found[match[1]].append(Picture(int(match[2]), entry.path, entry.size))
    return {name: sorted(pictures) for name, pictures in sorted(found.items(), key=_samples_first)}


def _samples_first(item: tuple[str, list[Picture]]) -> tuple[bool, str]:
    return item[0] != "samples", item[0]


def _images_seen(run: Storage) -> int | None:
    try:
        return int(json.loads(run.read("final/config.json"))["images_seen"])
    except MissingError:
        return None


def _parameters(lineage: Lineage) -> int | None:
    """The number of parameters, from the averages of the newest commit; None if it does not list its tensors."""
    newest = next(lineage.history(), None)
    if newest is None:
        return None
    try:
        layout = json.loads(lineage.run.read(f"checkpoints/{newest.name}/layout.json"))
    except MissingError:  # an older format, or deleted meanwhile
        return None
    return sum(int(math.prod(tensor["shape"])) for tensor in layout["ema"].values())
