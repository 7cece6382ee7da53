"""Checkpoints written in the background: what fails fails on all ranks alike, and what was abandoned does no harm."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.storage.storage import Storage
from tests.testbed.ranks import together
from tests.trainer.checkpoints.rank_states import checkpoints, group, state, values, whole
from trainer.checkpoints import checkpointer
from trainer.checkpoints.commit import Commit
from trainer.checkpoints.lineage import Lineage
from trainer.checkpoints.snapshots import take_snapshots
from trainer.checkpoints.tensor_files import from_safetensors
from trainer.distributed.ranks import rank
from trainer.errors import DivergedError
from trainer.training.posthoc_ema import PosthocEma


@pytest.fixture
def url(tmp_path: Path) -> str:
    return str(tmp_path / "run")


# ---- an error of one rank


def _fail_on_rank_1(url: str, report: str, error: Exception) -> None:
    with group():
        write = Storage.write

        def failing(storage: Storage, path: str, data: Any) -> None:
            if rank() == 1 and path.endswith("-1.safetensors"):
                raise error
            write(storage, path, data)

        Storage.write = failing  # type: ignore[method-assign]
        warnings: list[str] = []
        process = checkpoints(url, warnings)
        process.claim(lambda sections: None)
        process.start(100, state(100, "ddp"), [])
        raised = None
        try:
            process.ready(wait=True)
        except Exception as error:
            raised = type(error).__name__, str(error)
        Path(f"{report}-{rank()}.json").write_text(json.dumps([raised, warnings]))


def seen(folder: Path) -> list[Any]:
    return [json.loads((folder / f"seen-{me}.json").read_text()) for me in range(2)]


def test_a_bug_on_one_rank_ends_all_of_them(url: str, tmp_path: Path) -> None:
    """Were it raised there only, the others would wait for that rank in their next collective."""
    together(2, _fail_on_rank_1, url, str(tmp_path / "seen"), ValueError("a bug"))
    assert seen(tmp_path) == [[["ValueError", "a bug"], []]] * 2
    assert Lineage(Storage(url)).commits() == set()


def test_a_store_that_fails_on_one_rank_is_a_warning_on_all(url: str, tmp_path: Path) -> None:
    together(2, _fail_on_rank_1, url, str(tmp_path / "seen"), OSError(28, "No space left on device"))
    for raised, (warning,) in seen(tmp_path):
        assert raised is None
        assert "checkpoint 000000000100-0001 was not made" in warning
        assert "No space left on device" in warning


# ---- a checkpoint that nobody waits for any longer


def _diverge_while_writing(url: str) -> None:
    """Rank 1's store hangs; the run is rolled back meanwhile, and makes another commit before the store answers."""
    with group():
        checkpointer.DRAIN = 0.2
        write, answers = Storage.write, threading.Event()

        def hanging(storage: Storage, path: str, data: Any) -> None:
            if rank() == 1 and path.startswith("checkpoints/000000000200-0001/"):
                assert answers.wait(60)
            write(storage, path, data)

        Storage.write = hanging  # type: ignore[method-assign]
        process = checkpoints(url)
        process.claim(lambda sections: None)
        process.save(100, state(100, "ddp"), [{"images": 100}])
        with process:
            process.start(200, state(200, "ddp"), [{"images": 200}])
            abandoned = process._writing
        process.roll_back(DivergedError("diverged", 150), 150, 0.5)
        assert process.claim(lambda sections: None) is not None
        process.save(300, state(300, "ddp"), [{"images": 300}])
        answers.set()
        assert abandoned is not None
        abandoned.join(60)
        assert not abandoned.is_alive()
        process.save(400, state(400, "ddp"), [{"images": 400}])


def test_a_checkpoint_that_was_given_up_does_not_disturb_those_after_a_rollback(url: str) -> None:
    together(2, _diverge_while_writing, url)
    assert list(Lineage(Storage(url)).history()) == [Commit(400, 2), Commit(300, 2), Commit(100, 1)]
    assert Lineage(Storage(url)).commits() == {Commit(400, 2), Commit(300, 2), Commit(100, 1)}
    for number, images in enumerate((100, 300, 400)):
        loaded = whole(url, number).tensors("model")
        assert all(torch.equal(loaded[name], value) for name, value in values(images).items())


# ---- snapshots of averages


def test_a_snapshot_is_copied_at_once_and_stored_before_the_next_commit(url: str, monkeypatch) -> None:
    model = torch.nn.Linear(2, 1)
    posthoc, written, answers = PosthocEma(model), [], threading.Event()
    write = Storage.write

    def slow(storage: Storage, path: str, data: Any) -> None:
        if "/averages" in storage.url:
            assert answers.wait(60)
            path = f"averages/{path}"
            write(Storage(url), path, data)
        else:
            write(storage, path, data)
        written.append(path)

    monkeypatch.setattr(Storage, "write", slow)
    process = checkpoints(url)
    process.claim(lambda sections: None)
    taken = {name: value.half() for name, value in posthoc.averages[0].average.items()}
    take_snapshots(process, 100, posthoc)  # returns although the store does not answer
    for average in posthoc.averages:
        for value in average.average.values():
            value.zero_()
    process.start(100, state(100, "ddp"), [])
    assert not process.ready()
    assert "checkpoints/000000000100-0001/manifest.json" not in written
    answers.set()
    process.wait()
    assert [path.split("/")[0] for path in written].index("averages") < len(written) - 1
    assert written[-1] == "checkpoints/000000000100-0001/manifest.json"
    stored = from_safetensors("", Storage(url).read("averages/000000000100-0001-0.050.safetensors"))
    assert all(torch.equal(stored[name], value) for name, value in taken.items())


def test_a_store_that_fails_costs_the_snapshot_only(url: str, monkeypatch) -> None:
    def failing(storage: Storage, path: str, data: Any) -> None:
        if "/averages" in storage.url:
            raise OSError(28, "No space left on device")
        write(storage, path, data)

    write = Storage.write
    monkeypatch.setattr(Storage, "write", failing)
    warnings: list[str] = []
    process = checkpoints(url, warnings)
    process.claim(lambda sections: None)
    take_snapshots(process, 100, PosthocEma(torch.nn.Linear(2, 1)))
    process.save(100, state(100, "ddp"), [])
    (warning,) = warnings
    assert warning.startswith("a snapshot of the averages was not stored, training continues: ")
