"""Checkpoints of several ranks: whole or cut (FSDP2), read by any other number of ranks."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch

from cluster.storage.storage import Storage
from jobs.config.loading import load_config
from jobs.run.training import train_rank
from tests.jobs.conftest import BATCH, config_file, digits  # noqa: F401  (fixtures)
from tests.jobs.runs import assert_bitwise_equal, newest_tensors, training_rows
from tests.testbed.ranks import together
from tests.testbed.steps import train
from trainer.checkpoints.export import load
from trainer.checkpoints.lineage import Lineage
from trainer.checkpoints.snapshots import reconstruct
from trainer.checkpoints.tensor_files import (
    Piece,
    StoredTensor,
    blocks,
    from_safetensors,
    layout_json,
    merged,
    parsed_layout,
)


def test_a_stream_is_a_safetensors_file():
    tensors = {
        "a": torch.randn(3, 4),
        "b": torch.tensor(2.5, dtype=torch.float64),
        "c": torch.arange(7, dtype=torch.uint8),
        "d": torch.randn(5).bfloat16(),
        "e": torch.empty(0, 3),
    }
    back = from_safetensors("here", b"".join(blocks(tensors)))
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], value) and back[name].dtype == value.dtype for name, value in tensors.items())


def test_layouts_of_the_ranks_make_one_and_a_missing_part_is_told():
    layouts = [
        {
            "model": {
                "w": StoredTensor(torch.float32, (5, 3), (Piece(f"model-{rank}.safetensors", begin, shape, 72, (7,)),))
            }
        }
        for rank, begin, shape in ((0, (0, 0), (3, 3)), (1, (3, 0), (2, 3)))
    ]
    assert parsed_layout(json.loads(layout_json(merged(layouts)))) == merged(layouts)
    with pytest.raises(ValueError, match="a part of w is missing"):
        parsed_layout(json.loads(layout_json(layouts[1])))


@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_a_run_goes_from_two_ranks_to_one_and_back(config_file, sharding):  # noqa: F811
    """The state passes through every form; the sums are those of one rank but for the order of additions."""
    alone = config_file("alone")
    train_rank(load_config(str(alone)))
    path = config_file("moved", trainer={"sharding": sharding})
    together(2, train, path, 6)
    moved = load_config(str(path))
    before = newest_tensors(moved.run)
    train_rank(load_config(str(path), [f"trainer.images={10 * BATCH}"]))
    together(2, train, path)
    assert before.keys() == newest_tensors(moved.run).keys()
    for name, value in newest_tensors(load_config(str(alone)).run).items():
        torch.testing.assert_close(newest_tensors(moved.run)[name], value, rtol=5e-3, atol=5e-4)
    assert [row["images"] for row in training_rows(moved.run)] == [2 * BATCH * n for n in range(1, 11)]


def test_a_run_goes_from_two_copies_on_four_ranks_to_three_ranks_to_one_and_two(config_file):  # noqa: F811
    """Three ranks take uneven shares of the batch, and of most tensors."""
    alone = config_file("alone")
    train_rank(load_config(str(alone)))
    path = config_file("moved", trainer={"sharding": "fsdp", "shard_over": 2})
    together(4, train, path, None, f"trainer.images={5 * BATCH}")
    files, pieces = written(path, "model")
    assert len(files) == 4  # all ranks write
    assert set(pieces) == {1}  # nothing twice
    together(3, train, path, None, f"trainer.images={10 * BATCH}", "trainer.shard_over=auto")
    train_rank(load_config(str(path), [f"trainer.images={15 * BATCH}", "trainer.shard_over=auto"]))
    together(2, train, path)
    for name, value in newest_tensors(load_config(str(alone)).run).items():
        torch.testing.assert_close(newest_tensors(load_config(str(path)).run)[name], value, rtol=5e-3, atol=5e-4)


def written(path, section):
    """The names of the section's files in the newest commit, and the number of pieces of each part of a tensor."""
    lineage = Lineage(Storage(load_config(str(path)).run))
    folder = lineage.folder(next(iter(lineage.history())))
    layout = parsed_layout(json.loads(folder.run.read(f"{folder.path}/layout.json")))
    parts = Counter((name, piece.begin) for name, stored in layout[section].items() for piece in stored.pieces)
    files = {piece.file for stored in layout[section].values() for piece in stored.pieces}
    return files, list(parts.values())


def test_two_sharded_ranks_go_on_bitwise(config_file):  # noqa: F811
    straight, broken = (
        config_file(name, trainer={"sharding": "fsdp"}, optim={"posthoc": 5 * BATCH}) for name in ("straight", "broken")
    )
    together(2, train, straight)
    together(2, train, broken, 7)
    together(2, train, broken)
    runs = [load_config(str(path)).run for path in (straight, broken)]
    assert_bitwise_equal(newest_tensors(runs[0]), newest_tensors(runs[1]))
    assert any(name.startswith("posthoc/") for name in newest_tensors(runs[0]))
    averages = [reconstruct(Storage(run), 0.08).tensors for run in runs]
    assert_bitwise_equal(*averages)
    assert {name: value.shape for name, value in averages[0].items()} == {
        name: value.shape for name, value in load(runs[0]).named_parameters()
    }
