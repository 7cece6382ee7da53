"""A run on captions stops and continues on other ranks, and from a store that fails: same captions, same losses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from cluster.storage.storage import Storage
from jobs.config.loading import load_config
from jobs.run.training import train_rank
from tests.datasets.conditions.captioned_sets import members_of, write_captioned
from tests.jobs.runs import assert_bitwise_equal, metrics, newest_tensors
from tests.testbed.faults import Fault, FaultProxy
from tests.testbed.jobs import run_job
from tests.testbed.ranks import together, torchrun
from tests.testbed.steps import train

BATCH, STEPS = 16, 12
COUNTS = [40, 24, 17, 15]


def members(number: int) -> dict[str, bytes]:
    """Of every seventh image the caption is not UTF-8."""
    return members_of(number) | ({"txt": b"\xff\xfe"} if number % 7 == 3 else {})


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("captioned") / "set"
    write_captioned(folder, COUNTS, members)
    return folder


@pytest.fixture
def config(tmp_path: Path, shards: Path) -> Callable[..., str]:
    """Writes the configuration of a run of 12 steps of a small DiT, on two captions an image, by chance."""

    def write(name: str, run: str | None = None, data: str | None = None) -> str:
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
            "run": run or str(tmp_path / name),
            "model": {"kind": "diffusion", "denoiser": denoiser, "condition_dropout": 0.2},
            "data": {"shards": data or str(shards), "streams": 4, "conditions": {"caption": caption}},
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
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(values))
        return str(path)

    return write


def folder_of(path: str) -> str:
    return load_config(path).run


def assert_same_run(mine: str, other: str) -> None:
    """Equal but for the order in which floats are added; counts of captions are equal."""
    rows, others = metrics(mine), metrics(other)
    assert [row["images"] for row in rows] == [row["images"] for row in others]
    unknown = "data/unknown/caption/undecodable"
    assert sum(row.get(unknown, 0) for row in rows) == sum(row.get(unknown, 0) for row in others) > 0
    for row, theirs in zip(rows, others, strict=True):
        names = [name for name in row if name.startswith(("train/nats", "validation/nats"))]
        assert {name: row[name] for name in names} == pytest.approx({name: theirs[name] for name in names}, rel=2e-4)
    tensors = newest_tensors(other)
    for name, value in newest_tensors(mine).items():
        torch.testing.assert_close(value, tensors[name], rtol=5e-3, atol=5e-4)


def test_two_ranks_begin_one_continues_and_three_end(config):
    alone, handed_over = config("alone"), config("handed-over")
    train(alone)
    together(2, train, handed_over, 4)
    train(handed_over, 3)
    together(3, train, handed_over)
    assert_same_run(folder_of(alone), folder_of(handed_over))


def test_torchrun_begins_and_one_process_ends(config):
    alone, begun = config("alone"), config("begun")
    train(alone)
    torchrun(2, "jobs.train_local", begun, f"trainer.images={5 * BATCH}")
    train(begun)
    assert_same_run(folder_of(alone), folder_of(begun))


def test_a_store_that_fails_changes_nothing(config, shards, s3_environment, monkeypatch):
    """Stopped half-way, with loader processes after it."""
    bucket = s3_environment.bucket("captions")
    for path in (path for path in sorted(shards.rglob("*")) if path.is_file()):
        Storage(f"{bucket}/set").write(str(path.relative_to(shards)), path)
    local, remote = config("local"), config("remote", f"{bucket}/run", f"{bucket}/set")
    train(local)
    with FaultProxy(s3_environment.endpoint, seed=3) as proxy:
        for fault in (
            Fault("status", share=0.05, method="GET", path=r"\.tar"),
            Fault("reset", share=0.05, after=4000, method="GET", path=r"\.tar"),
            Fault("corrupt", share=0.05, after=2000, method="GET", path=r"\.tar"),
            Fault("status", times=2, method="PUT", path="/run/"),
        ):
            proxy.add(fault)
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        train(remote, 7)
        train(remote, None, "data.workers=1")
        assert {request.fault for request in proxy.requests} > {None}
        assert_bitwise_equal(newest_tensors(folder_of(local)), newest_tensors(folder_of(remote)))
        assert metrics(folder_of(local)) == metrics(folder_of(remote))


@pytest.mark.ray
def test_two_ray_workers_begin_and_one_process_ends(config, only_ray, tmp_path_factory):
    alone, begun = config("alone"), config("begun")
    train(alone)
    ended = run_job("train", begun, "ray.workers=2", f"trainer.images={5 * BATCH}", timeout=240.0)
    assert ended.status == 0, ended.stderr
    assert train_rank(load_config(begun)).finished
    assert_same_run(folder_of(alone), folder_of(begun))
