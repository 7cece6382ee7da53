"""A small run on captions, and what two such runs must have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.config.loading import load_config
from tests.datasets.conditions.captioned_sets import members_of, write_captioned
from tests.jobs.runs import metrics

BATCH, STEPS = 16, 12
COUNTS = [40, 24, 17, 15]


def write_set(folder: Path) -> Path:
    """Shards whose images have two captions; of every seventh the .txt is not UTF-8."""
    write_captioned(folder, COUNTS, lambda n: members_of(n) | ({"txt": b"\xff\xfe"} if n % 7 == 3 else {}))
    return folder


def write_config(path: Path, run: str, shards: str) -> str:
    """The configuration of a run of 12 steps of a small DiT, on one of two captions of an image, by chance."""
    encoder = {"kind": "transformer", "width": 8, "depth": 1, "heads": 2}
    denoiser = {
        "network": {"kind": "dit", "patch": 2, "width": 16, "depth": 2, "heads": 2},
        "embedding": 8,
        "prediction": {"kind": "v"},
        "conditions": {"caption": {"kind": "text", "encoder": encoder}},
    }
    caption = {
        "kind": "text",
        "members": ["txt", "json.meta.recaption"],
        "probabilities": [0.7, 0.3],
        "max_tokens": 8,
        "vocabulary": 300,
    }
    values: dict[str, Any] = {
        "run": run,
        "model": {"kind": "diffusion", "denoiser": denoiser, "condition_dropout": 0.2},
        "data": {"shards": shards, "streams": 4, "conditions": {"caption": caption}},
        "optim": {"lr": 0.01, "schedule": "constant", "ema": 50},
        "trainer": {
            "images": STEPS * BATCH,
            "batch": BATCH,
            "threads": 1,
            "pictures": 0,
            "log_every": BATCH,
            "evaluate_every": 6 * BATCH,
            "checkpoint_every": 6 * BATCH,
        },
        "tracking": {"mode": "off"},
    }
    path.write_text(yaml.safe_dump(values))
    return str(path)


def folder_of(path: str) -> str:
    return load_config(path).run


def assert_same_run(mine: str, other: str) -> None:
    """The same images, counts of unknown captions and losses, batch by batch; floats were added in another order."""
    rows, others = metrics(mine), metrics(other)
    unknown = "data/unknown/caption/undecodable"
    exact = [[(row["images"], row.get(unknown, 0)) for row in of_run] for of_run in (rows, others)]
    assert exact[0] == exact[1]
    assert len({count for _, count in exact[0]}) > 1
    for row, theirs in zip(rows, others, strict=True):
        names = [name for name in row if name.startswith("train/nats")]
        assert {name: row[name] for name in names} == pytest.approx({name: theirs[name] for name in names}, rel=2e-4)
    assert len([row for row in rows if "train/nats" in row]) == STEPS
