"""python -m jobs.verify and python -m jobs.index from the command line, on shards that change."""

from __future__ import annotations

import pytest

from datasets.shards.indexing import index_shards
from tests.datasets.small_sets import png, write_members, write_set
from tests.testbed.jobs import call_job, run_job


def test_intact_shards_verify(tmp_path):
    write_set(tmp_path, [3] * 9)
    ran = run_job("verify", str(tmp_path), "--processes", "2")
    assert (ran.status, ran.stderr) == (0, "")
    assert ran.stdout == "verified 27 images in 9 shards: all good\n"


def test_each_bad_image_and_unknown_shard_has_a_line(tmp_path):
    write_set(tmp_path, [3, 3])
    shard = tmp_path / "0001.tar"
    data = bytearray(shard.read_bytes())
    data[data.index(b"IDAT") + 8] ^= 1
    shard.write_bytes(data)
    write_members(tmp_path / "new.tar", [("a.png", png())])
    ran = call_job("verify", str(tmp_path))
    assert ran.status == 1
    lines = ran.stdout.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith(f"{tmp_path}/0001.tar: sample '000003': png does not match its checksum")
    assert lines[1].startswith("new.tar: not in the index; run python -m jobs.index")
    assert lines[2] == "verified 6 images in 2 shards: 1 of them bad, 1 shards not indexed"


def index(folder, pattern: str = "") -> int:
    """The number of shards read to update the index."""
    return index_shards(f"{folder}/{pattern}" if pattern else str(folder), str(folder / "index")).scanned


def test_only_new_and_changed_shards_are_read_again(tmp_path):
    write_set(tmp_path, [3, 3, 3])
    assert index(tmp_path) == 0
    write_members(tmp_path / "0001.tar", [("z.png", png()), ("z.cls", b"1")])
    write_members(tmp_path / "0009.tar", [("y.png", png()), ("y.cls", b"1")])
    assert index(tmp_path) == 2
    (tmp_path / "0000.tar").unlink()
    again = index_shards(str(tmp_path), str(tmp_path / "index"))
    assert again.scanned == 0
    assert [(shard.name, shard.images) for shard in again.shards] == [("0001.tar", 1), ("0002.tar", 3), ("0009.tar", 1)]


def test_a_pattern_updates_only_its_own_shards(tmp_path):
    write_set(tmp_path, [3, 3, 3])
    for name in ("0000.tar", "0002.tar"):
        write_members(tmp_path / name, [("z.png", png()), ("z.cls", b"1")])
    assert index(tmp_path, "000{1..2}.tar") == 1
    assert index(tmp_path) == 1


@pytest.mark.parametrize("name", ["index", "verify"])
def test_a_pattern_without_shards_is_a_one_line_error(tmp_path, name):
    write_set(tmp_path, [3])
    ran = call_job(name, f"{tmp_path}/x-{{0..3}}.tar")
    assert ran.status == 1
    assert ran.error.startswith(f"error: {tmp_path}: no shard x-0.tar and 3 more")
