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


def test_quarantined_samples_are_counted_by_reason_and_stop_lists_them(tmp_path):
    members = [(f"{number}.png", b"" if number in (3, 5) else png(number)) for number in range(10)]
    write_members(tmp_path / "0.tar", [*members, (".DS_Store", b"")])
    stopped = call_job("index", str(tmp_path), "--on-bad", "stop")
    assert stopped.status == 1
    *bad, error = stopped.stderr.splitlines()
    assert bad == [
        f"{tmp_path}/0.tar: sample {key!r}: '{key}.png': the image does not decode (empty)" for key in ("3", "5")
    ]
    assert error.startswith(f"error: {tmp_path}: 2 of 10 samples cannot be used (2 like 0.tar: sample '3': ")
    ran = call_job("index", str(tmp_path))
    assert (ran.status, ran.stderr) == (0, "")
    indexed, account, quarantined, skipped = ran.stdout.splitlines()
    assert indexed.startswith("indexed 8 images, ")
    assert account == "10 samples seen = 8 indexed + 2 quarantined"
    assert quarantined == (
        f"quarantined, listed in {tmp_path}/index/quarantine.arrow: 2 of 10 samples cannot be used "
        "(2 like 0.tar: sample '3': '3.png': the image does not decode (empty))"
    )
    assert skipped == "skipped 1 files that belong to no sample: hidden, without an extension, or named like __meta__"


def test_one_index_is_not_of_two_folders(tmp_path):
    for name in ("a", "b"):
        write_members(tmp_path / name / "0.tar", [("k.png", png())])
    ran = call_job("index", f"{tmp_path}/a", f"{tmp_path}/b", "--out", f"{tmp_path}/ix")
    assert (ran.status, ran.stderr) == (
        1,
        f"error: --out is the index of one folder, but 2 are given: {tmp_path}/a, {tmp_path}/b\n",
    )
    assert not (tmp_path / "ix").exists()


def test_a_label_far_beyond_the_number_of_images_is_named(tmp_path):
    write_members(tmp_path / "0.tar", [("a.png", png()), ("a.cls", b"99999")])
    ran = call_job("index", str(tmp_path), "--class-names", "")
    assert ran.status == 0
    assert ran.stderr == f"warning: {tmp_path}/0.tar: has label 99,999: 100,000 classes for 1 images\n"


def test_compressed_tars_are_named(tmp_path):
    (tmp_path / "1.tar.gz").write_bytes(b"")
    (tmp_path / "2.tgz").write_bytes(b"")
    ran = call_job("index", str(tmp_path))
    assert ran.stderr == (
        f"error: {tmp_path}: no such folder, or no .tar in it, but 1.tar.gz: unpack compressed tars\n"
    )
    write_members(tmp_path / "0.tar", [("a.png", png())])
    ran = call_job("index", str(tmp_path))
    assert ran.status == 0
    assert ran.stderr == (
        f"warning: {tmp_path}: left out 2 compressed tars (1.tar.gz): shards must be plain tars, which can be read in "
        "ranges\n"
    )


def test_a_folder_that_cannot_be_written_is_named_with_the_way_out(tmp_path):
    write_members(tmp_path / "0.tar", [("a.png", png())])
    (tmp_path / "index").write_text("in the way")
    ran = call_job("index", str(tmp_path))
    assert ran.status == 1
    assert ran.stderr.startswith(f"error: {tmp_path}/index")
    assert ran.stderr.endswith("; --out writes the index elsewhere\n")
    assert ran.stderr.count("\n") == 1
    assert call_job("index", str(tmp_path), "--out", f"{tmp_path}/ix").status == 0
