"""The metrics of a run as JSON lines; W&B is fed from them.

    <run>/metrics/000000012800-0002.jsonl      the rows of attempt 2 up to 12800 images, since its commit before

A part is written before the manifest of its commit, so a commit never lacks its rows. Rows after the last commit are
lost with the process and computed again by the next attempt.
"""

from __future__ import annotations

import json
import logging
from typing import Any

from cluster.storage.errors import TooLargeError
from cluster.storage.storage import Storage, join
from trainer.checkpoints.commit import Commit
from trainer.checkpoints.lineage import Lineage
from trainer.checkpoints.records import parse_record

MOST_PART_BYTES = 1 << 30
logger = logging.getLogger(__name__)

Row = dict[str, Any]
"""Figures by name; "images" is the image count that they belong to."""


def write_rows(run: Storage, commit: Commit, rows: list[Row]) -> None:
    """Store the rows since the previous commit as the part of a commit that is about to be made."""
    if rows:
        run.write(f"metrics/{commit.name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())


def read_metrics(run: Storage) -> list[Row]:
    """All rows of the newest lineage, in order: no gaps, no duplicates."""
    parts = {Commit.named(entry.path.rsplit("/", 1)[-1].removesuffix(".jsonl")) for entry in run.list("metrics")}
    rows: list[Row] = []
    for attempt, first, last in Lineage(run).segments():
        own = [commit for commit in parts if commit and commit.attempt == attempt and commit.images >= first]
        for commit in sorted(commit for commit in own if last is None or commit.images <= last):
            rows += _whole_rows(run, f"metrics/{commit.name}.jsonl")
    return rows


def _whole_rows(run: Storage, path: str) -> list[Row]:
    """The rows of a part; lines that are torn, zeros or no rows are left out, with a warning in the log."""
    rows, damaged = [], 0
    try:
        lines = run.read(path, MOST_PART_BYTES).splitlines()
    except TooLargeError as error:
        logger.warning("%s; its rows are left out", error)
        return []
    for line in lines:
        try:
            rows.append(parse_record("row of metrics", line))
        except ValueError:
            damaged += 1
    if damaged:
        logger.warning("%s: %d lines are damaged and left out", join(run.url, path), damaged)
    return rows
