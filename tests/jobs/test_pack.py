"""python -m jobs.pack from the command line."""

from __future__ import annotations

from datasets.config import DataConfig
from datasets.loading.build import training_batches
from datasets.shards.index import Index
from jobs.pack import main
from tests.testbed.jobs import call_job, run_job


def test_packing_twice_writes_once(tmp_path):
    first = run_job("pack", "--source", "digits", "--out", str(tmp_path / "d"))
    assert first.status == 0
    assert first.stdout.startswith("packed 1,527 images in 8 shards, ")
    assert first.stderr == ""
    assert f"at {tmp_path}/d/train\n" in first.stdout
    again = call_job("pack", "--source", "digits", "--out", str(tmp_path / "d"))
    assert again.status == 0
    assert again.stdout.startswith("already packed: 1,527 images")


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
        assert all((a == b).all() for a, b in zip(ours, theirs, strict=True))
