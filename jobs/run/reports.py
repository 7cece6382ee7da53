"""Reports about a run: the split that they are of, and <run>/evaluations/, where they are kept."""

from __future__ import annotations

import contextlib
import json
import re
from typing import Any

from cluster.storage.errors import StorageError
from cluster.storage.storage import Storage, join
from datasets.errors import DataError
from datasets.shards.index import Index
from jobs.config.other_images import warnings
from jobs.config.schema import RunConfig
from jobs.errors import ConfigError
from trainer.checkpoints.export import Loaded
from trainer.checkpoints.weights import in_words
from trainer.distributed.ranks import rank
from trainer.tracking.display import say_on_rank_zero
from trainer.tracking.trackers import send_report


def index_of(config: RunConfig, split: str) -> Index:
    """The images of `validation` or `train` of a run, or at a URL; of a mixture, every image of every set once.

    Raises ConfigError if the run has none.
    """
    if split == "train":
        return Index.of(config.data)
    shards = config.data.validation if split == "validation" else split
    if not shards:
        raise ConfigError(f"{config.run}: the run has no validation set; name shards by --split URL")
    return Index.open(shards)


def warn_of(config: RunConfig, index: Index) -> None:
    """Print what to know about a bound on `index`, other images than a run was trained on. Rank 0 reads the training
    index, if it is still there.
    """
    if rank() == 0:
        with contextlib.suppress(DataError, StorageError):
            for warning in warnings(Index.of(config.data), index):
                say_on_rank_zero(f"warning: {warning}")


def split_name(split: str) -> str:
    """The part of a file name for a split: validation, train, or other for a URL."""
    return split if split in ("validation", "train") else "other"


def file_name(*parts: object) -> str:
    """The name of a report about these, leaving out those that are empty or zero."""
    return "-".join(re.sub(r"[^\w.]+", "-", str(part)).strip("-") for part in parts if part)


def weights_text(loaded: Loaded) -> str:
    """Which weights of which moment: "averaged (EMA) weights after 1,280 images"."""
    after = "" if loaded.images is None else f" after {loaded.images:,} images"
    return f"{in_words(loaded.weights)} weights{after}"


def keep(run_folder: Storage, config: RunConfig, name: str, report: dict[str, Any]) -> None:
    """Write a report to the run folder, and its figures to a W&B run of their own."""
    run_folder.write(f"evaluations/{name}.json", json.dumps(report, indent=1).encode())
    say_on_rank_zero(f"written to {join(run_folder.url, 'evaluations', name)}.json")
    if config.tracking.mode != "off":
        facts = {key: value for key, value in report.items() if key != "figures"}
        send_report(run_folder, config.tracking, name, facts, report["figures"], say_on_rank_zero)
