"""What must hold after any harm: each image once, the undisturbed weights, metrics without gaps or doubles."""

from __future__ import annotations

from pathlib import Path

import torch

from cluster.storage import Storage
from tests.chaos.runs import BATCH, STEPS
from tests.jobs.runs import metrics, newest_tensors
from trainer.lineage import Lineage


def positions_of(run: str, folder: Path) -> list[int]:
    """The positions that made the newest weights, in the order of training, from the traces of the attempts."""
    lineage = Lineage(Storage(run))
    newest = next(lineage.history()).images
    found: list[int] = []
    for attempt, first, last in lineage.reigns():
        steps: dict[int, list[int]] = {}
        for path in folder.glob(f"trace-{attempt:04d}-*.txt"):
            for line in path.read_text().splitlines():
                start, *positions = map(int, line.split())
                if first <= start < (newest if last is None else last):
                    steps.setdefault(start, []).extend(positions)
        for start in sorted(steps):
            found += sorted(steps[start])
    return found


def problems(run: str, folder: Path, reference: str, bitwise: bool = True, images: int = STEPS * BATCH) -> list[str]:
    """What is wrong with a finished run, in words; nothing if all is as it would have been without harm."""
    found = []
    if positions_of(run, folder) != list(range(images)):
        found.append("not every image exactly once")
    mine, theirs = newest_tensors(run), newest_tensors(reference)
    if bitwise:
        different = [name for name in theirs if name not in mine or not mine[name].equal(theirs[name])]
    else:
        different = [
            name for name in theirs if not torch.allclose(mine[name].float(), theirs[name].float(), 5e-3, 5e-4)
        ]
    if different or mine.keys() != theirs.keys():
        found.append(f"{len(different)} of {len(theirs)} tensors differ")
    rows, wanted = metrics(run), metrics(reference)
    if [row["images"] for row in rows] != [row["images"] for row in wanted]:
        found.append("metrics have gaps or doubles")
    elif not all(_close(row, other, 1e-9 if bitwise else 1e-2) for row, other in zip(rows, wanted, strict=True)):
        found.append("metrics differ")
    orphans = Lineage(Storage(run)).orphans()
    if orphans:
        found.append(f"{len(orphans)} orphaned checkpoints are left")
    return found


def _close(row: dict[str, float], other: dict[str, float], relative: float) -> bool:
    return row.keys() == other.keys() and all(
        abs(value - other[name]) <= relative * max(abs(value), 1e-3)
        for name, value in row.items()
        if isinstance(value, int | float)
    )
