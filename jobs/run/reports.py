"""Reports about a run or an export: the images that they are of, and <folder>/evaluations/, where they are kept."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

from cluster.storage.errors import MissingError, StorageError
from cluster.storage.storage import Storage, join
from datasets.errors import DataError
from datasets.shards.index import Index
from jobs.config.loading import config_from, config_of
from jobs.config.other_images import warnings
from jobs.config.schema import RunConfig
from jobs.errors import ConfigError
from trainer.checkpoints.export import Loaded, description_of
from trainer.checkpoints.weights import in_words
from trainer.distributed.ranks import rank
from trainer.tracking.trackers import send_report

OWN_SPLITS = ("validation", "train")  # of a run
MEASURED = (
    "figures",
    "worst",
    "best",
    "rows",
    "duplicates",
)  # parts of a report that are results; all others say what it is of


@dataclass(frozen=True)
class Subject:
    """What reports are about: a run, or an export, which has no images of its own."""

    folder: Storage
    config: RunConfig  # of an export: the defaults, with the export's model and `data.transform`
    is_run: bool

    def index(self, split: str, location: str = "") -> Index:
        """The images of `validation` or `train` of a run, or at a URL; of a mixture, every image of every set once.

        `location`: URL of the index of a URL's shards; default: <split>/index.

        Raises ConfigError if there are none.
        """
        if split in OWN_SPLITS and not self.is_run:
            raise ConfigError(f"{self.folder.url}: an export has no images of its own; name shards by --split URL")
        if location and split in OWN_SPLITS:
            raise ConfigError(f"--index {location}: goes with --split URL; the run names the index of its {split} set")
        if split == "train":
            return Index.of(self.config.data)
        if split != "validation":
            return Index.open(split, location, self.config.data.columns)
        held_out = Index.held_out(self.config.data)
        if held_out is None:
            raise ConfigError(f"{self.folder.url}: the run has no validation set; name shards by --split URL")
        return held_out

    def warnings(self, index: Index) -> list[str]:
        """What to know about a bound on `index`, other images than a run was trained on. Rank 0 reads the training
        index, if it is still there.
        """
        found: list[str] = []
        if rank() == 0 and self.is_run:
            with contextlib.suppress(DataError, StorageError):
                found = warnings(Index.of(self.config.data), index)
        return found


def subject_of(url: str) -> Subject:
    """The run or the export in a folder. Raises ConfigError if it is neither."""
    folder = Storage(url)
    if folder.exists("config.yaml") or not folder.exists("config.json"):
        return Subject(folder, config_of(folder), True)
    facts = description_of(folder)
    data = {"shards": folder.url, "transform": facts.get("transform")}
    values = {"run": folder.url, "model": facts["model"], "data": data, "tracking": {"mode": "off"}}
    return Subject(folder, config_from(values, join(folder.url, "config.json")), False)


def split_name(split: str, index: Index) -> str:
    """The part of a file name for a split: validation, train, or of a URL its last part and its fingerprint."""
    if split in OWN_SPLITS:
        return split
    return f"{split.rstrip('/').rpartition('/')[2]}-{index.fingerprint[:8]}"


def file_name(*parts: object) -> str:
    """The name of a report about these, leaving out those that are empty or zero."""
    return "-".join(re.sub(r"[^\w.]+", "-", str(part)).strip("-") for part in parts if part)


def weights_text(loaded: Loaded) -> str:
    """Which weights of which moment: "averaged (EMA) weights after 1,280 images"."""
    after = "" if loaded.images is None else f" after {loaded.images:,} images"
    return f"{in_words(loaded.weights)} weights{after}"


def keep(subject: Subject, name: str, report: dict[str, Any], plot: bytes | None = None) -> list[str]:
    """Write a report to <folder>/evaluations/, and its figures to a W&B run of their own; lines for the user. `plot`: a
    PNG that goes with it.

    Where `name` holds a report about something else, a checksum of this one's facts is added to it.
    """
    facts = {key: value for key, value in report.items() if key not in MEASURED}
    name = _free_name(subject.folder, name, json.loads(json.dumps(facts)))
    subject.folder.write(f"evaluations/{name}.json", json.dumps(report, indent=1).encode())
    lines = [f"written to {join(subject.folder.url, 'evaluations', name)}.json"]
    if plot is not None:
        subject.folder.write(f"evaluations/{name}.png", plot)
        lines.append(f"plot: {join(subject.folder.url, 'evaluations', name)}.png")
    tracking = subject.config.tracking
    if tracking.wanted:
        send_report(subject.folder, tracking, name, facts, report["figures"], lines.append, plot)
    return lines


def _free_name(folder: Storage, name: str, facts: dict[str, Any]) -> str:
    try:
        held = json.loads(folder.read(f"evaluations/{name}.json"))
    except (MissingError, ValueError):
        return name
    if isinstance(held, dict) and {key: value for key, value in held.items() if key not in MEASURED} == facts:
        return name  # the same again
    digest = hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=4).hexdigest()
    return f"{name}-{digest}"
