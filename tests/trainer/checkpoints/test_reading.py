"""Restoring reads no byte that a rank does not need, checks every byte, and works between any numbers of ranks."""

from __future__ import annotations

import json
import math
import time
from itertools import pairwise
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from cluster.storage.storage import Storage
from tests.testbed.ranks import together
from tests.trainer.checkpoints.rank_states import (
    SHAPES,
    checkpoints,
    group,
    restore,
    save,
    state,
    values,
    whole,
)
from trainer.checkpoints.checkpointer import Checkpointer
from trainer.checkpoints.commit import Commit, CommitFolder
from trainer.checkpoints.read_plan import Target, plan
from trainer.checkpoints.reading import SavedState
from trainer.checkpoints.retention import CheckpointConfig
from trainer.checkpoints.tensor_files import CHUNK, Piece, StoredTensor, checksums, to_safetensors
from trainer.distributed.ranks import on_rank_zero
from trainer.errors import DamagedError, TrainingError

BYTES = 4 * (2 * math.prod(SHAPES["wide"]) + math.prod(SHAPES["kernel"]) + 7 + 1 + 15)  # of a state's tensors


@pytest.fixture
def url(tmp_path: Path) -> str:
    return str(tmp_path / "run")


def reports(folder: Path, name: str, ranks: int) -> list[dict]:
    return [json.loads((folder / f"{name}-{me}.json").read_text()) for me in range(ranks)]


def flip(url: str, commit: Commit, file: str, where: float) -> None:
    run, path = Storage(url), f"checkpoints/{commit.name}/{file}"
    data = bytearray(run.read(path))
    data[int(where * (len(data) - 1))] ^= 16
    run.write(path, bytes(data))


# ---- one rank


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_any_region_comes_back_from_any_pieces(data: st.DataObject) -> None:
    rows, columns = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 40_000))
    tensor = torch.arange(rows * columns, dtype=torch.int32).reshape(rows, columns)
    cuts = sorted({0, rows, *data.draw(st.lists(st.integers(0, rows), max_size=3))})
    files, pieces, ahead = {}, [], data.draw(st.integers(0, 99))
    for number, (begin, end) in enumerate(pairwise(cuts)):
        part = tensor[begin:end].contiguous()
        files[str(number)] = b"x" * ahead + part.numpy().tobytes()
        pieces.append(Piece(str(number), (begin, 0), tuple(part.shape), ahead, checksums(part)))
    stored = StoredTensor(torch.int32, (rows, columns), tuple(pieces))
    top, left = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, columns - 1))
    height, width = data.draw(st.integers(1, rows - top)), data.draw(st.integers(1, columns - left))
    region = torch.zeros(width, height, dtype=torch.int64).T  # other strides, another type
    read = 0
    for request in plan([Target(stored, region, (top, left))]):
        content = memoryview(files[request.file])[request.start : request.stop]
        assert not request.failed_checksum(content)
        read += len(content)
        request.deliver(content)
    assert torch.equal(region, tensor[top : top + height, left : left + width].long())
    assert read <= height * columns * 4 + 2 * CHUNK * len(pieces)


def test_small_neighbours_come_in_one_request_and_large_tensors_in_several(url: str, monkeypatch) -> None:
    process = Checkpointer(url, CheckpointConfig())
    process.claim(lambda sections: None)
    large = torch.randn(3_000, 3_000)
    many = {f"bias.{number}": torch.randn(10) for number in range(100)}
    process.save(100, {"model": {"large": large, **many}, "progress": {"images": 0}}, [])
    saved = whole(url)
    asked: list[int] = []
    read_range = Storage.read_range

    def noted(storage: Storage, path: str, start: int, stop: int) -> memoryview:
        asked.append(stop - start)
        return read_range(storage, path, start, stop)

    monkeypatch.setattr(Storage, "read_range", noted)
    loaded = saved.tensors("model")
    assert torch.equal(loaded["large"], large)
    assert len(asked) == 6  # 4,000 and 36,000,000 bytes
    assert max(asked) <= 8 << 20
    asked.clear()
    row = torch.empty(1, 3_000)
    stored = saved.layout["model"]["large"]
    (request,) = plan([Target(stored, row, (1_500, 0))])
    assert request.stop - request.start <= 2 * CHUNK


def test_a_corrupt_answer_is_read_again(url: str, monkeypatch) -> None:
    """Stores were seen to deliver flipped bytes in silence: the second answer may be right."""
    process = checkpoints(url)
    process.claim(lambda sections: None)
    process.save(100, state(100, "ddp"), [])
    read_range, spoilt = Storage.read_range, [True]

    def once(storage: Storage, path: str, start: int, stop: int) -> memoryview:
        data = bytearray(read_range(storage, path, start, stop))
        data[len(data) // 2] ^= spoilt.pop() if spoilt else 0
        return memoryview(bytes(data))

    monkeypatch.setattr(Storage, "read_range", once)
    assert torch.equal(whole(url).tensors("model")["wide"], values(100)["wide"])
    assert not spoilt
    spoilt += [True, True]
    with pytest.raises(DamagedError, match=r"model\.safetensors: its content is not what the manifest says"):
        whole(url).tensors("model")


@pytest.mark.parametrize("where", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_no_flipped_byte_of_a_tensor_is_restored(url: str, where: float) -> None:
    process = checkpoints(url)
    process.claim(lambda sections: None)
    for images in (100, 200):
        process.save(images, state(images, "ddp"), [])
    flip(url, Commit(200, 1), "model.safetensors", where)
    warnings: list[str] = []
    again = checkpoints(url, warnings)
    assert again.claim(lambda sections: None) is not None
    into = {"model": {name: torch.empty(shape) for name, shape in SHAPES.items()}}
    again.restore(lambda saved: saved.fill(into))
    header = where == 0.0  # nobody needs the file's own header: the layout says where the tensors are
    assert again.attempt.start == Commit(200 if header else 100, 1)
    assert all(torch.equal(into["model"][name], value) for name, value in values(200 if header else 100).items())
    assert len(warnings) == 1 - header


def test_what_does_not_fit_is_told_in_one_line(url: str) -> None:
    process = checkpoints(url)
    process.claim(lambda sections: None)
    process.save(100, state(100, "ddp"), [])
    saved = whole(url)
    with pytest.raises(TrainingError, match=r"model/bias has shape \(7,\), the model's \(8,\)$"):
        saved.fill({"model": {"bias": torch.empty(8)}})
    with pytest.raises(TrainingError, match=r"has no model/other$"):
        saved.fill({"model": {"other": torch.empty(8)}})


# ---- format 1: whole files with their SHA-256, parts of tensors listed in layout.json


def write_format_1(url: str, ranks: int) -> None:
    """A commit as versions up to 6f6f0ee wrote it, sharded if there are several ranks."""
    run = Storage(url)
    process = checkpoints(url)
    process.claim(lambda sections: None)
    folder = CommitFolder(run, Commit(100, 1))
    files, layout = {"progress.json": json.dumps({"images": 100}).encode()}, {}
    parts: list[dict] = [{} for _ in range(ranks)]
    for number, (name, value) in enumerate(values(100).items()):
        if value.ndim == 0 or ranks == 1:
            parts[number % ranks][name] = value
            continue
        pieces = {}
        for me, part in enumerate(value.chunk(ranks)):
            if part.numel() or not value.numel():
                parts[me][name] = part.contiguous()
                pieces[f"model-{me}.safetensors"] = [me * -(-value.shape[0] // ranks)] + [0] * (value.ndim - 1)
        layout[name] = {"shape": list(value.shape), "pieces": pieces}
    for me, part in enumerate(parts):
        files["model.safetensors" if ranks == 1 else f"model-{me}.safetensors"] = to_safetensors(part)
    if ranks > 1:
        files["layout.json"] = json.dumps({"model": layout}).encode()
    digests = {name: folder.write_file(name, data) for name, data in files.items()}
    folder.write_manifest(digests)
    path = f"{folder.path}/manifest.json"
    run.write(path, run.read(path).replace(b'"format": 2', b'"format": 1'))


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_format_1_is_still_read(url: str, ranks: int) -> None:
    write_format_1(url, ranks)
    saved = whole(url)
    assert saved.manifest.format == 1
    assert saved.sections == {"progress": {"images": 100}}
    loaded = saved.tensors("model")
    assert loaded.keys() == SHAPES.keys()
    assert all(torch.equal(loaded[name], value) for name, value in values(100).items())
    process = checkpoints(url)
    process.claim(lambda sections: None)
    process.save(200, state(200, "ddp"), [])
    assert whole(url).manifest.format == 2


@pytest.mark.parametrize("where", [0.0, 0.02, 0.5, 1.0])
def test_no_flipped_byte_of_format_1_is_restored(url: str, where: float) -> None:
    write_format_1(url, 2)
    flip(url, Commit(100, 1), "model-1.safetensors", where)
    with pytest.raises(DamagedError):
        whole(url).tensors("model")


# ---- several ranks


@pytest.mark.parametrize("ranks", [2, 4])
def test_replicated_tensors_are_read_once_a_node(url: str, tmp_path: Path, ranks: int) -> None:
    together(ranks, save, url, "ddp", 100)
    together(ranks, restore, url, "ddp", str(tmp_path / "one"))
    seen = reports(tmp_path, "one", ranks)
    assert {each["images"] for each in seen} == {100}
    assert sum(each["tensors"] for each in seen) <= 1.001 * BYTES + 1000  # and padding between them
    assert all(each["tensors"] > 0 for each in seen)  # the ranks share the work
    assert [each["others"] > 0 for each in seen] == [True] + [False] * (ranks - 1)  # manifest, layout, JSON


def test_every_node_reads_replicated_tensors_once(url: str, tmp_path: Path) -> None:
    together(2, save, url, "ddp", 100)
    together(4, restore, url, "ddp", str(tmp_path / "two"), 2)
    seen = reports(tmp_path, "two", 4)
    for node in (seen[:2], seen[2:]):
        assert BYTES <= sum(each["tensors"] for each in node) <= 1.001 * BYTES + 1000


def test_sharded_ranks_read_their_own_parts_whatever_number_wrote_them(url: str, tmp_path: Path) -> None:
    for number, (before, after) in enumerate([(4, 2), (2, 1), (1, 4), (4, 4)]):
        together(before, save, url, "fsdp", 100 * (number + 1))
        together(after, restore, url, "fsdp", str(tmp_path / f"{before}to{after}"))
        seen = reports(tmp_path, f"{before}to{after}", after)
        assert {each["images"] for each in seen} == {100 * (number + 1)}
        for each in seen:  # checksums cover CHUNK bytes, two at the edges of each part
            assert each["tensors"] <= BYTES / after + 2 * 3 * CHUNK
            assert each["tensors"] >= 0.9 * BYTES / after - 3 * CHUNK


@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
@pytest.mark.parametrize("damaged", [0, 1])
def test_if_a_checksum_fails_on_one_rank_all_take_the_commit_before(
    url: str, tmp_path: Path, sharding: str, damaged: int
) -> None:
    together(2, save, url, sharding, 100, 200)
    flip(url, Commit(200, 1), f"model-{damaged}.safetensors", 0.99)
    together(2, restore, url, sharding, str(tmp_path / "seen"))
    seen = reports(tmp_path, "seen", 2)
    assert [each["images"] for each in seen] == [100, 100]
    assert [len(each["warnings"]) for each in seen] == [1, 0]
    assert f"model-{damaged}.safetensors" in seen[0]["warnings"][0]


def _restore_slowly(url: str) -> None:
    """The collectives of training time out after 3 s; rank 0 reads for longer than that."""
    with group(timeout=3.0):
        read, read_range = Storage.read, Storage.read_range

        def slow(storage: Storage, path: str, most: int | None = None) -> bytes:
            time.sleep(4.0 * path.endswith("manifest.json"))
            return read(storage, path, most)

        def slow_range(storage: Storage, path: str, start: int, stop: int) -> memoryview:
            time.sleep(4.0)
            return read_range(storage, path, start, stop)

        Storage.read, Storage.read_range = slow, slow_range  # type: ignore[method-assign]
        process = checkpoints(url)
        saved = process.claim(lambda sections: None)
        assert isinstance(saved, SavedState)
        into = {"model": {"bias": torch.empty(7)}}
        process.restore(lambda saved: saved.fill(into))
        assert torch.equal(into["model"]["bias"], values(100)["bias"])
        on_rank_zero(lambda: None)


def test_a_slow_store_does_not_time_out_the_ranks_that_wait(url: str) -> None:
    together(2, save, url, "ddp", 100)
    together(2, _restore_slowly, url)
