"""python -m jobs.pack from the command line."""

from __future__ import annotations

import pytest
from PIL import Image

from datasets.config import DataConfig
from datasets.errors import DataError
from datasets.loading.build import training_batches
from datasets.shards.index import Index
from jobs.pack import main
from tests.datasets.small_sets import png
from tests.testbed.jobs import call_job, run_job


def test_packing_twice_writes_once(tmp_path):
    first = run_job("pack", "--source", "digits", "--out", str(tmp_path / "d"))
    assert first.status == 0
    format = "8 x 8, 1 channels, 17 levels, 10 classes; images: train 1,527, validation 270\n"
    assert first.stdout.startswith("found handwritten digits 8x8 (UCI, carried by scikit-learn): " + format)
    assert "\npacked 1,527 images in 8 shards, " in first.stdout
    assert first.stderr == ""
    assert f"at {tmp_path}/d/train\n" in first.stdout
    again = call_job("pack", "--source", "digits", "--out", str(tmp_path / "d"))
    assert again.status == 0
    assert "\nalready packed: 1,527 images" in again.stdout
    other = call_job("pack", "--source", "digits", "--out", str(tmp_path / "d"), "--size", "9", "9")
    assert other.status == 1
    assert "/train: already packed from handwritten" in other.stderr


def test_missing_files_are_one_line_errors(tmp_path):
    ran = call_job("pack", "--source", "idx", "--out", str(tmp_path / "d"))
    assert (ran.status, ran.stderr) == (
        1,
        "error: --source idx: give the folder (path or URL) of its files by --from\n",
    )
    ran = call_job("pack", "--source", "cifar10", "--from", str(tmp_path / "none"), "--out", str(tmp_path / "d"))
    assert ran.status == 1
    assert ran.stderr.count("\n") == 1
    assert "none of data_batch_1.bin" in ran.stderr


def test_packing_to_s3_and_training_from_there(s3_environment, tmp_path):
    bucket = s3_environment.bucket("packed")
    for out in (f"{bucket}/digits", str(tmp_path)):
        main(["--source", "digits", "--shard-images", "500", "--out", out])
    urls = f"{bucket}/digits/train", str(tmp_path / "train")
    assert len({Index.open(url).fingerprint for url in urls}) == 1
    batches = []
    for url in urls:
        with training_batches(DataConfig(shards=url, workers=0), Index.open(url), seed=1, batch=64) as loader:
            batches.append([next(loader) for _ in range(4)])
    for ours, theirs in zip(*batches, strict=True):
        assert all((a == b).all() for a, b in zip(ours.tensors(), theirs.tensors(), strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "100000", "100000"], "--size 100000 100000: not a size between 1 and 67,108,864 pixels"),
        (["--size", "0", "8"], "--size 0 8: not a size"),
        (["--held-out", "1"], "--held-out 1.0: not a fraction from 0 to below 1"),
        (["--shard-images", "0"], "--shard-images 0: not a positive number"),
        (["--shard-size", "0"], "--shard-size 0: not a positive number of bytes"),
        (["--quality", "101"], "--quality 101: not a number from 1 to 100"),
    ],
)
def test_impossible_options_are_one_line_errors(tmp_path, options, message):
    ran = call_job("pack", "--source", "digits", "--out", str(tmp_path / "d"), *options)
    assert (ran.status, ran.stderr.count("\n")) == (1, 1)
    assert ran.stderr.startswith(f"error: {message}")
    assert not (tmp_path / "d").exists()


def test_what_was_found_left_out_and_composited_is_printed(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(4):
        (photos / f"{number}.png").write_bytes(png(number))
    Image.new("RGBA", (6, 4)).save(photos / "4.png")
    (photos / "5.png").write_bytes(png(5)[:50])
    (photos / "6.png").write_bytes(png(6)[:60])
    (photos / "7.jpg").touch()
    command = ["pack", "--source", "folder", "--from", str(photos), "--held-out", "0", "--out", str(tmp_path / "o")]
    stopped = call_job(*command)
    *bad, error = stopped.stderr.splitlines()
    assert stopped.status == 1
    assert sorted(line.split(": ")[0] for line in bad) == [f"{photos}/5.png", f"{photos}/6.png"]
    assert error.startswith("error: 2 of 7 images cannot be packed")
    skipped = call_job(*command, "--on-bad", "skip")
    assert skipped.status == 0
    assert skipped.stdout.splitlines()[:3] == [
        f"found in {photos}:",
        "  train: 7 images (7 png), no classes",
        "  skipped: 1 empty (7.jpg)",
    ]
    assert skipped.stdout.splitlines()[3].startswith("packed 5 images in 5 shards")
    assert "  1 images with transparent pixels: composited on white\n" in skipped.stdout
    assert "  2 images left out, which cannot be packed\n" in skipped.stdout
    assert "warning: " in skipped.stderr  # grey and in colour
    again = call_job(*command, "--on-bad", "skip")
    assert "already packed: 5 images" in again.stdout
    assert "composited on white" in again.stdout


def test_the_folder_of_all_splits_is_no_set(tmp_path):
    out = tmp_path / "d"
    main(["--source", "digits", "--out", str(out)])
    for command in (["index", str(out)], ["index", f"{out}/*.tar"]):
        indexed = call_job(*command)
        assert indexed.status == 1
        assert indexed.stderr.startswith(f"error: {out}: holds sets with an index of their own (train, validation); ")
        assert f"{out}/train" in indexed.stderr
    assert not (out / "index").exists()
    with pytest.raises(
        DataError, match=f"holds train, validation, each a set with its own index; give .*: {out}/train"
    ):
        Index.open(str(out))
    assert call_job("index", f"{out}/train").status == 0
    assert Index.open(f"{out}/train").levels == 17
