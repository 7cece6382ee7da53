"""Damaged images are found: they stop the run, or get weight zero and are recorded."""

from __future__ import annotations

from pathlib import Path

import pytest

from datasets.config import DataConfig
from datasets.errors import DataError
from datasets.loading.build import evaluation_batches, training_batches
from datasets.quarantine import EpochRow, Quarantined, epoch_rows
from datasets.reading.verify import verify_shard
from datasets.shards.index import Index
from tests.datasets.small_sets import number_of, write_set


def flip(path: Path, marker: bytes) -> None:
    """Change a byte of the image data that follows a marker."""
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT", data.index(marker)) + 8] ^= 1
    path.write_bytes(data)


@pytest.fixture
def damaged(tmp_path) -> Index:
    """40 images; number 5 is flipped, 37, 38 and 39 are cut off."""
    write_set(tmp_path, [20, 20])
    flip(tmp_path / "0000.tar", b"000005.png")
    data = (tmp_path / "0001.tar").read_bytes()
    (tmp_path / "0001.tar").write_bytes(data[: data.index(b"000037.cls")])
    return Index.open(str(tmp_path))


@pytest.mark.parametrize("settings", [{"cache": 0}, {"cache": "1MiB"}, {"cache": 0, "workers": 2}, {"memory": 1}])
def test_quarantined_images_have_weight_zero_and_the_others_are_unchanged(damaged, settings):
    config = DataConfig(
        shards=damaged.url, streams=4, window=8, on_bad="quarantine", bad_share=1, **{"workers": 0, **settings}
    )
    with training_batches(config, damaged, seed=1, batch=20) as batches:
        taken = [next(batches) for _ in range(6)]
        entries = list(batches.quarantined)
    bad = {position for batch in taken for position in batch.positions[batch.weights == 0].tolist()}
    assert bad == {entry.position for entry in entries}
    assert sorted((entry.epoch, entry.key) for entry in entries) == [
        (epoch, f"0000{number:02d}") for epoch in range(3) for number in (5, 37, 38, 39)
    ]
    for batch in taken:
        assert not batch.images[batch.weights == 0].any()
        assert len(batch.weights) == 20
    for epoch in range(3):
        pair = taken[2 * epoch : 2 * epoch + 2]
        numbers = [number_of(image.numpy()) for batch in pair for image in batch.images[batch.weights > 0]]
        assert sorted(numbers) == [number for number in range(40) if number not in (5, 37, 38, 39)]
    flipped = next(entry for entry in entries if entry.key == "000005")
    assert flipped.shard == f"{damaged.url}/0000.tar"
    assert flipped.reason.startswith("png does not match its checksum: the shard has changed")
    rows = epoch_rows(40, 120, entries)
    assert rows == [EpochRow(epoch, 40, 36, 4) for epoch in range(3)]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_stops_above_the_allowed_share_of_bad_images(damaged, workers):
    config = DataConfig(shards=damaged.url, streams=4, on_bad="quarantine", bad_share=0.05, workers=workers)
    with training_batches(config, damaged, seed=1, batch=4) as batches, pytest.raises(DataError) as error:  # noqa: PT012
        for _ in range(20):
            next(batches)
    assert "3 images quarantined in epoch 0, more than data.bad_share allows; the last one:" in str(error.value)
    assert "\n" not in str(error.value)


def test_the_first_bad_image_stops_a_run_without_quarantine(damaged):
    config = DataConfig(shards=damaged.url, streams=4, workers=0)
    with training_batches(config, damaged, seed=1, batch=40) as batches, pytest.raises(DataError, match="sample '0000"):
        next(batches)


def test_an_evaluation_leaves_out_bad_images(damaged):
    config = DataConfig(shards=damaged.url, workers=0, on_bad="quarantine", bad_share=0.5)
    with evaluation_batches(config, damaged, batch=7) as batches:
        weights = sum(int(batch.weights.sum()) for batch in batches)
        assert (weights, len(batches.quarantined)) == (36, 4)


def test_all_images_of_a_missing_shard_are_quarantined(tmp_path):
    index = write_set(tmp_path, [10, 10])
    (tmp_path / "0001.tar").unlink()
    config = DataConfig(shards=index.url, streams=4, workers=0, on_bad="quarantine", bad_share=0.5)
    with training_batches(config, index, seed=1, batch=20) as batches:
        assert int(next(batches).weights.sum()) == 10
        assert {entry.reason.partition(": ")[2] for entry in batches.quarantined} == {"the shard no longer exists"}


def test_verifying_finds_all_damage(damaged):
    found = [verify_shard(damaged, number) for number in range(2)]
    assert [key for key, _ in found[0].bad] == ["000005"]
    assert [key for key, _ in found[1].bad] == ["", "000037", "000038", "000039"]
    assert found[1].bad[0][1].startswith("the shard has ")


def test_a_ledger_row_counts_the_images_seen_so_far():
    entries = [Quarantined(epoch, position, "s", "k", "r") for epoch, position in ((0, 3), (0, 9), (1, 12), (1, 19))]
    assert epoch_rows(10, 15, entries) == [EpochRow(0, 10, 8, 2), EpochRow(1, 10, 4, 1)]
    assert epoch_rows(10, 0, []) == []
