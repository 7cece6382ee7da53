"""A run continues on repaired or fewer shards with data.accept_changes; the ledger records it."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

import pytest

from cluster.storage.storage import Storage
from datasets.errors import DataError
from datasets.shards.indexing import index_shards
from jobs.config.loading import load_config
from jobs.run.training import train_rank
from tests.datasets.small_sets import write_members
from tests.jobs.conftest import BATCH
from tests.jobs.runs import metrics
from tests.testbed.ranks import together
from tests.testbed.steps import StopAfter, train
from trainer.checkpoints.journal import read_metrics
from trainer.errors import TrainingError

SHARD = "000002.tar"
ACCEPT = "data.accept_changes=true"


@pytest.fixture
def own(tmp_path, digits) -> Path:
    """A copy of the training shards."""
    shutil.copytree(digits / "train", tmp_path / "own")
    return tmp_path / "own"


def rewrite(folder: Path, spoil: bool = False, drop: int = 0, name: str = SHARD) -> None:
    """Write a shard anew, with the second image instead of the first; without the last `drop` images; or with the first
    one destroyed. Unless it is spoilt, index it.
    """
    with tarfile.open(folder / name) as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar]
    images = [i for i, (member, _) in enumerate(members) if member.endswith(".png")]
    other = b"\0" * len(members[images[0]][1]) if spoil else members[images[1]][1]
    members[images[0]] = (members[images[0]][0], other)
    gone = {members[i][0].split(".")[0] for i in images[len(images) - drop :]}
    write_members(folder / name, [member for member in members if member[0].split(".")[0] not in gone])
    if not spoil:
        index_shards(str(folder), str(folder / "index"))


def changed(run: str) -> list[dict]:
    return [entry for row in read_metrics(Storage(run)) for entry in row.get("changed_shards", [])]


def test_a_repaired_shard_is_accepted_when_told_to(config_file, own, capsys):
    path = str(config_file(data={"shards": str(own)}, trainer={"images": 40 * BATCH}))
    train_rank(load_config(path), StopAfter(5))
    rewrite(own)
    with pytest.raises(TrainingError) as error:
        train_rank(load_config(path))
    assert str(error.value).endswith(
        "/run: was started on other images (names, counts or checksums of the shards differ): 000002.tar (191 images) "
        "has other content; data.accept_changes=true continues on the images as they are"
    )
    config = load_config(path, [ACCEPT])
    capsys.readouterr()
    train_rank(config)
    assert "training shards: 000002.tar (191 images) has other content\n" in capsys.readouterr().out
    assert changed(config.run) == [{"shard": SHARD, "images_before": 191, "images": 191, "at": 5 * BATCH}]
    assert [entry for row in metrics(config.run) for entry in row.get("ledger", [])] == [
        {"epoch": 0, "expected": 1527, "seen": 1527, "quarantined": 0}
    ]
    train_rank(load_config(path, ["trainer.images=2624"]))  # the run is one on these shards now
    assert len(changed(config.run)) == 1


def test_a_shard_may_be_left_out(config_file, own):
    path = str(config_file(data={"shards": str(own)}, trainer={"images": 40 * BATCH}))
    run = load_config(path).run
    train_rank(load_config(path), StopAfter(5))
    others = f"data.shards=[{', '.join(str(each) for each in sorted(own.glob('*.tar')) if each.name != SHARD)}]"
    with pytest.raises(TrainingError, match=r"000002\.tar \(191 images\) is left out; data\.accept_changes=true"):
        train_rank(load_config(path, [others]))
    assert train_rank(load_config(path, [others, ACCEPT])).finished
    assert changed(run) == [{"shard": SHARD, "images_before": 191, "images": None, "at": 5 * BATCH}]
    ledger = [entry for row in metrics(run) for entry in row.get("ledger", [])]
    assert ledger == []  # of 2,560 images the first 1,336 are an epoch of two sets, in which some images come twice
    longer = load_config(path, [others, ACCEPT, "trainer.images=4096"])
    train_rank(longer)
    ledger = [entry for row in metrics(run) for entry in row.get("ledger", [])]
    assert [(entry["epoch"], entry["expected"]) for entry in ledger] == [(1, 1336), (2, 1336)]


def test_a_finished_run_is_extended_on_a_repaired_shard(config_file, own):
    path = str(config_file(data={"shards": str(own)}))
    train_rank(load_config(path))
    rewrite(own, drop=3)
    with pytest.raises(TrainingError, match=r"000002\.tar \(191 images before, 188 now\) has other content"):
        train_rank(load_config(path, ["trainer.images=1920"]))
    assert train_rank(load_config(path, ["trainer.images=1920", ACCEPT])).finished
    assert changed(load_config(path).run)[0]["images"] == 188


def test_another_set_is_refused_even_then(config_file, own, digits):
    path = str(config_file(data={"shards": str(own)}))
    train_rank(load_config(path), StopAfter(5))
    for shards in (digits / "validation", f"[{own}, {digits / 'validation'}]"):
        with pytest.raises(TrainingError, match="was started on other images"):
            train_rank(load_config(path, [f"data.shards={shards}", ACCEPT]))
    for number in range(5):
        rewrite(own, name=f"{number:06d}.tar")
    with pytest.raises(TrainingError, match="was started on other images"):
        train_rank(load_config(path, [ACCEPT]))


def test_a_run_that_met_a_bad_image_continues_with_a_quarantine_or_a_repair(config_file, own):
    path = str(config_file(data={"shards": str(own)}, trainer={"images": 40 * BATCH, "checkpoint_every": BATCH}))
    rewrite(own, spoil=True)
    with pytest.raises(
        DataError, match=r"000002\.tar: sample .*; data\.on_bad=quarantine continues without such images"
    ):
        train_rank(load_config(path))
    quarantine = ["data.on_bad=quarantine", "data.bad_share=0.01"]
    assert train_rank(load_config(path, quarantine), StopAfter(10)).images > 0
    rewrite(own)
    assert train_rank(load_config(path, [ACCEPT])).finished
    rows = read_metrics(Storage(load_config(path).run))
    assert any(row.get("quarantined") for row in rows) or changed(load_config(path).run)
    assert changed(load_config(path).run)[0]["shard"] == SHARD


def test_two_ranks_continue_on_a_repaired_shard_as_one_does(config_file, own):
    paths = [str(config_file(name, data={"shards": str(own)})) for name in ("alone", "two")]
    train(paths[0], 5)
    together(2, train, paths[1], 5)
    rewrite(own)
    train(paths[0], None, ACCEPT)
    together(2, train, paths[1], None, ACCEPT)
    for path in paths:
        run = load_config(path).run
        (change,) = changed(run)
        assert change["shard"] == SHARD
        assert metrics(run)[-1]["images"] == 20 * BATCH
