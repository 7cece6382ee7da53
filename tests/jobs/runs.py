"""What a run folder says about the run."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from cluster.storage.storage import Storage
from trainer.checkpoints.journal import read_metrics
from trainer.checkpoints.lineage import Lineage
from trainer.checkpoints.reading import SavedState

# Figures that time decides, or how often a run was stopped.
CLOCKED = (
    "images_per_second",
    "images_per_second_per_device",
    "data_wait",
    "checkpoint_stall",
    "mfu",
    "restarts",
    "evaluation/seconds",
    "elapsed",
    "ranks/wait",
    "ranks/slowest",
    "ranks/waits",
    "memory/allocated",
    "memory/reserved",
    "memory/peak",
)


def newest_tensors(run: Path | str) -> dict[str, Tensor]:
    """Every tensor of the newest commit, as "<section>/<name>"."""
    lineage = Lineage(Storage(str(run)))
    saved = SavedState(lineage.folder(next(lineage.history())))
    return {f"{section}/{name}": value for section in saved.layout for name, value in saved.tensors(section).items()}


def assert_bitwise_equal(mine: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """The same names, and the same bits."""
    assert mine.keys() == other.keys()
    different = [name for name in mine if not mine[name].equal(other[name])]
    assert not different


def training_rows(run: Path | str) -> list[dict]:
    """The rows of `metrics` that are about training."""
    return [row for row in metrics(run) if "train/lr" in row]


def evaluation_rows(run: Path | str) -> list[dict]:
    """The rows of `metrics` that are about the held-out set."""
    return [row for row in metrics(run) if "validation/nats" in row]


def metrics(run: Path | str) -> list[dict]:
    """The rows of the newest lineage: their numbers, without those that time or stops decide, and lists."""
    left_out = (*CLOCKED, "validation/worst")
    return [
        {name: value for name, value in row.items() if name not in left_out and not isinstance(value, str)}
        for row in read_metrics(Storage(str(run)))
    ]
