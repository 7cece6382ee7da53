"""jobs.repack: a selection in shards of its own, with the members as they were."""

from __future__ import annotations

import os
import signal
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest

from datasets.config import DataConfig
from datasets.errors import DataError
from datasets.loading.build import evaluation_batches
from datasets.packing import repack as repacking
from datasets.packing.repack import repack
from datasets.shards.index import Index
from datasets.shards.indexing import IndexOptions, index_shards
from jobs import repack as command
from tests.datasets.selection.scored_sets import write_scored
from tests.datasets.small_sets import png, write_members
from tests.testbed.forks import context


def members_of(folder: Path) -> dict[str, bytes]:
    """The contents of all tars of a folder by the name of the member, in order."""
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            found |= {member.name: tar.extractfile(member).read() for member in tar}
    return found


def pixels(index: Index, url: str, location: str = "") -> np.ndarray:
    config = DataConfig(shards=url, index=location, workers=0)
    with evaluation_batches(config, index, batch=7) as batches:
        return np.concatenate([batch.images[batch.weights > 0].numpy() for batch in batches])


def test_members_are_copied_unchanged_into_shards_of_the_size_asked_for(tmp_path, capsys):
    write_scored(tmp_path / "set")
    assert command.main([f"{tmp_path}/set", "--out", f"{tmp_path}/new", "--shard-images", "15"]) == 0
    assert capsys.readouterr().out.startswith("repacked 40 images in 3 shards, ")
    before, after = (Index.open(f"{tmp_path}/{name}") for name in ("set", "new"))
    assert list(after.counts) == [15, 15, 10]
    assert members_of(tmp_path / "new") == members_of(tmp_path / "set")
    assert after.meta.columns == before.meta.columns
    assert after.columns(2).column("json.meta.name").to_pylist() == [f"n{number}" for number in range(30, 40)]
    assert not (tmp_path / "new/index/repacking").exists() or not list((tmp_path / "new/index/repacking").iterdir())
    assert command.main([f"{tmp_path}/set", "--out", f"{tmp_path}/new", "--shard-images", "15"]) == 0
    assert capsys.readouterr().out == f"already repacked: 40 images in 3 shards at {tmp_path}/new\n"
    with pytest.raises(DataError, match="new: holds the samples of another index, or other shards of them"):
        command.main([f"{tmp_path}/set", "--out", f"{tmp_path}/new", "--shard-images", "16"])
    with pytest.raises(DataError, match=r"set: holds tars that were not repacked here \(0\.tar\)"):
        list(repack(Index.open(f"{tmp_path}/new"), f"{tmp_path}/new", "", f"{tmp_path}/set", 15))


def test_a_selection_with_named_labels_and_several_images(tmp_path):
    pytest.importorskip("duckdb")
    from jobs import select

    for shard in range(3):
        samples = []
        for number in range(8):  # the same keys in each shard
            samples += [
                (f"{number}.image.png", png(8 * shard + number)),
                (f"{number}.mask.png", png(100 + number)),
                (f"{number}.cls", [b"cat", b"ant", b"dog"][number % 3]),
            ]
        write_members(tmp_path / f"set/{shard}.tar", samples)
    index_shards(f"{tmp_path}/set", f"{tmp_path}/set/index", IndexOptions(image="image.png", named_labels=True))
    chosen = f"{tmp_path}/chosen"
    assert select.main([f"{tmp_path}/set", "--where", "label_name <> 'ant'", "--out", chosen]) == 0
    assert command.main([f"{tmp_path}/set", "--index", chosen, "--out", f"{tmp_path}/new", "--shard-images", "15"]) == 0
    old, new = Index.open(f"{tmp_path}/set", chosen), Index.open(f"{tmp_path}/new")
    assert new.meta.class_names == ("ant", "cat", "dog")
    assert new.images == old.images == 15
    assert np.array_equal(pixels(new, f"{tmp_path}/new"), pixels(old, f"{tmp_path}/set", chosen))
    names = list(members_of(tmp_path / "new"))
    assert names[:3] == ["0.cls", "0.image.png", "0.mask.png"]
    assert len(names) == len(set(names)) == 45


def test_keys_that_meet_in_a_shard_are_told_apart(tmp_path):
    for shard in range(2):
        write_members(tmp_path / f"set/{shard}.tar", [(f"{number}.png", png(number)) for number in range(3)])
    index_shards(f"{tmp_path}/set", f"{tmp_path}/set/index")
    list(repack(Index.open(f"{tmp_path}/set"), f"{tmp_path}/set", "", f"{tmp_path}/new", 6))
    assert list(members_of(tmp_path / "new")) == ["0.png", "1.png", "2.png", "1/0.png", "1/1.png", "1/2.png"]


def test_a_damaged_member_is_named(tmp_path):
    write_scored(tmp_path / "set")
    path = tmp_path / "set/2.tar"
    data = bytearray(path.read_bytes())
    place = bytes(data).index(b'"meta"')
    data[place] ^= 1
    stat = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(DataError, match=r"set/2\.tar: sample '0020': json does not match its checksum"):
        list(repack(Index.open(f"{tmp_path}/set"), f"{tmp_path}/set", "", f"{tmp_path}/new", 15))


def test_a_killed_run_is_continued(tmp_path, capsys):
    write_scored(tmp_path / "set")
    arguments = [f"{tmp_path}/set", "--out", f"{tmp_path}/new", "--shard-images", "5"]
    assert command.main([*arguments[:1], "--out", f"{tmp_path}/whole", "--shard-images", "5"]) == 0
    process = context.Process(target=_killed_in_the_fourth, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    written = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "new").glob("*.tar")}
    assert len(written) == 4  # the last one without its record
    time.sleep(0.01)
    assert command.main(arguments) == 0
    for path in sorted((tmp_path / "new").glob("*.tar")):
        assert path.read_bytes() == (tmp_path / "whole" / path.name).read_bytes()
        assert (written.get(path.name) == path.stat().st_mtime_ns) == (path.name < "000003.tar")
    assert Index.open(f"{tmp_path}/new").fingerprint == Index.open(f"{tmp_path}/whole").fingerprint


def _killed_in_the_fourth(folder: Path) -> None:
    put = repacking.put_in_place

    def and_die(out, scratch, name):
        put(out, scratch, name)
        if name == "000003.tar":
            os.kill(os.getpid(), signal.SIGKILL)

    repacking.put_in_place = and_die
    list(repack(Index.open(f"{folder}/set"), f"{folder}/set", "", f"{folder}/new", 5))
