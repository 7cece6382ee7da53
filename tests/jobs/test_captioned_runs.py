"""A run on captions stops and continues on other ranks, and from a store that fails: same captions, same losses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.storage.storage import Storage
from tests.jobs.captioned import BATCH, assert_same_run, folder_of, write_config, write_set
from tests.jobs.runs import assert_bitwise_equal, metrics, newest_tensors
from tests.testbed.faults import Fault, FaultProxy
from tests.testbed.ranks import together, torchrun
from tests.testbed.steps import train


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("captioned") / "set")


@pytest.fixture
def config(tmp_path: Path, shards: Path) -> Callable[..., str]:
    """Writes a configuration and returns its path."""

    def write(name: str, run: str | None = None, data: str | None = None) -> str:
        return write_config(tmp_path / f"{name}.yaml", run or str(tmp_path / name), data or str(shards))

    return write


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
