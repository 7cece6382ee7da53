"""The share of images that may be bad is one of all ranks together."""

from __future__ import annotations

import os

import pytest
import torch.distributed as dist

from cluster.storage.storage import Storage
from datasets.config import DataConfig
from datasets.errors import DataError
from datasets.loading.build import training_batches
from datasets.shards.index import Index
from datasets.shards.indexing import index_shards
from jobs.run.ledger import Ledger
from tests.datasets.small_sets import png, write_members, write_set
from tests.testbed.ranks import together

RANKS = 2


def take(url: str, run: str, share: float, ends: bool) -> None:
    """An epoch of a set of 40 images, of which 12 are lost, on a rank that reads some of these."""
    dist.init_process_group("gloo")
    index = Index.open(url)
    config = DataConfig(shards=url, streams=4, window=8, workers=0, on_bad="quarantine", bad_share=share)
    ledger = Ledger(config, index, Storage(run))
    rank = int(os.environ["RANK"])
    with training_batches(config, index, seed=1, batch=20, ranks=RANKS, rank=rank) as batches:
        ledger.follow(batches, 0)
        for _ in range(2):
            next(batches)
        assert 0 < len(batches.quarantined) < 12, "each rank reads some of the bad images"
        if ends:
            with pytest.raises(DataError, match=r"^12 images quarantined in epoch 0, more than"):
                ledger.row(40)
        else:
            assert ledger.row(40)["data/quarantined"] == 12


@pytest.mark.parametrize(("share", "ends"), [(0.29, True), (0.3, False)])
def test_the_share_that_may_be_bad_is_one_of_all_ranks(tmp_path, share, ends):
    index = write_set(tmp_path / "set", [10, 10, 10, 10])
    for number in range(4):  # the last three images of each shard are cut off
        shard = tmp_path / "set" / f"000{number}.tar"
        data = shard.read_bytes()
        shard.write_bytes(data[: data.index(f"{10 * number + 7:06d}.png".encode())])
    together(RANKS, take, index.url, str(tmp_path / "run"), share, ends)


def test_samples_that_the_index_quarantined_are_in_every_row(tmp_path):
    members = [(f"{number}.png", b"" if number == 3 else png(number)) for number in range(8)]
    write_members(tmp_path / "0.tar", members)
    index_shards(str(tmp_path), f"{tmp_path}/index")
    ledger = Ledger(DataConfig(shards=str(tmp_path)), Index.open(str(tmp_path)), Storage(str(tmp_path / "run")))
    row = ledger.row(7)
    assert (row["data/samples"], row["data/indexed"], row["data/quarantined_by_index"]) == (8, 7, 1)
    assert row["ledger"] == [{"epoch": 0, "expected": 7, "seen": 7, "quarantined": 0}]
