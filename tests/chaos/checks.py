"""What must hold after any fault: each image once, the undisturbed weights, metrics without gaps or doubles."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from cluster.storage.storage import Storage
from tests.chaos.runs import BATCH, STEPS
from tests.jobs.runs import metrics, newest_tensors
from trainer.checkpoints.lineage import Lineage


class Step(NamedTuple):
    """A batch of one rank, as its trace has it."""

    attempt: int
    images: int  # trained before
    time: float  # seconds since 1970
    positions: list[int]


def steps_of(folder: Path) -> list[Step]:
    """Every batch that any attempt has trained, those that were lost again with it too."""
    found = []
    for path in sorted(folder.glob("trace-*-*.txt")):
        attempt = int(path.name.split("-")[1])
        for line in path.read_text().splitlines():
            images, at, *positions = line.split()
            found.append(Step(attempt, int(images), float(at), [int(position) for position in positions]))
    return found


def positions_of(run: str, folder: Path) -> list[int]:
    """The positions that made the newest weights, in the order of training, from the traces of the attempts."""
    lineage = Lineage(Storage(run))
    newest = next(lineage.history()).images
    made: dict[int, list[int]] = {}
    for attempt, first, last in lineage.segments():
        for step in steps_of(folder):
            if step.attempt == attempt and first <= step.images < (newest if last is None else last):
                made.setdefault(step.images, []).extend(step.positions)
    return [position for images in sorted(made) for position in sorted(made[images])]


def repeated(folder: Path) -> int:
    """How many images were trained more than once, by whatever attempt."""
    positions = [position for step in steps_of(folder) for position in step.positions]
    return len(positions) - len(set(positions))


def problems(run: str, folder: Path, reference: str, bitwise: bool = True, images: int = STEPS * BATCH) -> list[str]:
    """What is wrong with a finished run, in words; nothing if all is as it would have been without fault."""
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
