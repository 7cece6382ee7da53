"""python -m jobs.index from the command line."""

from __future__ import annotations

from datasets.shards.index import Index
from tests.datasets.small_sets import png, write_members, write_set
from tests.testbed.jobs import call_job, run_job


def test_shards_are_indexed(tmp_path):
    write_members(tmp_path / "a" / "x.tar", [("k1.png", png()), ("k1.json", b"{}"), ("k2.png", png(1))])
    ran = run_job("index", str(tmp_path))
    assert (ran.status, ran.stderr) == (0, "")
    assert ran.stdout == f"indexed 2 images, 6 x 4, 1 channels, 0 classes, in 1 shards (all read): {tmp_path}/index\n"
    assert Index.open(str(tmp_path)).name(0) == "a/x.tar"


def test_a_shard_that_is_not_a_tar_is_a_one_line_error_and_no_index_is_written(tmp_path):
    write_set(tmp_path / "good", [2])
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "0.tar").write_bytes(b"<html>404</html>" * 100)
    ran = call_job("index", str(tmp_path / "bad"))
    assert ran.status == 1
    assert ran.stderr.startswith(f"error: {tmp_path}/bad/0.tar: not a tar")
    assert ran.stderr.count("\n") == 1
    assert not (tmp_path / "bad" / "index" / "index.json").exists()


def test_an_empty_folder_is_a_one_line_error(tmp_path):
    ran = call_job("index", str(tmp_path / "none"))
    assert (ran.status, ran.stderr) == (1, f"error: {tmp_path}/none: no such folder, or no .tar in it\n")
