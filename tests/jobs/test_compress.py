"""Compressing the images of a run and restoring them; and what becomes of damaged, foreign and out-of-place files."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets.config import DataConfig
from datasets.loading.build import evaluation_batches
from datasets.shards.index import Index
from jobs import decompress as decompress_job
from jobs.compress import main as compress
from jobs.compression.container import parse
from jobs.compression.table import yardsticks
from jobs.config.loading import load_config
from jobs.decompress import main as decompress
from jobs.errors import ConfigError
from jobs.run.training import train_rank
from tests.testbed.processes import REPOSITORY
from trainer.errors import TrainingError

NETWORK = {"kind": "mlp", "hidden": [32]}
LABEL = {"label": {"kind": "class"}}


def images_of(folder: Path | str) -> tuple[np.ndarray, list[int]]:
    """All images and labels of packed shards."""
    found, labels = [], []
    with evaluation_batches(DataConfig(shards=str(folder)), Index.open(str(folder), ""), batch=64) as batches:
        for batch in batches:
            found.append(batch.images[batch.weights > 0].numpy())
            if "label" in batch.conditions:
                labels += batch.conditions["label"][batch.weights > 0].tolist()
    return np.concatenate(found), labels


@pytest.fixture(scope="module")
def run(tmp_path_factory, digits):
    """A trained tiny VAE of digits and its validation set, compressed."""
    folder = tmp_path_factory.mktemp("compressed")
    config = folder / "run.yaml"
    values = {
        "run": str(folder / "run"),
        "model": {"kind": "vae", "latent": 4, "encoder": NETWORK, "decoder": NETWORK},
        "data": {"shards": str(digits / "train"), "validation": str(digits / "validation"), "streams": 4},
        "trainer": {"images": 1280, "batch": 64, "threads": 1, "pictures": 0},
        "tracking": {"mode": "off"},
    }
    config.write_text(json.dumps(values))
    train_rank(load_config(str(config)))
    compress([str(folder / "run"), "validation", "--out", str(folder / "digits.lbz")])
    return folder


def test_images_are_restored_bit_for_bit_as_a_set_of_shards(run, digits, tmp_path, capsys):
    decompress([str(run / "run"), str(run / "digits.lbz"), "--out", str(tmp_path / "set")])
    assert "270 images" in capsys.readouterr().out
    expected, found = images_of(digits / "validation")[0], images_of(tmp_path / "set")[0]
    assert (found == expected).all()
    assert Index.open(str(tmp_path / "set"), "").levels == 17


def test_the_report_of_a_file_counts_all_of_its_bytes(run, tmp_path, capsys):
    out = tmp_path / "few.lbz"
    compress([str(run / "run"), "validation", "--out", str(out), "--count", "100", "--lanes", "4", "--check"])
    said = capsys.readouterr().out
    data = out.read_bytes()
    header = parse(data, "few").header
    assert (header.count, header.lanes) == (100, 4)
    assert f"100 images in {len(data):,} bytes, {8 * len(data) / 6400:.4f} bpd" in said
    assert "decoded again: the same pixels" in said


@pytest.mark.parametrize(
    "model",
    [
        {"kind": "vae", "latent": 4, "encoder": NETWORK, "decoder": NETWORK, "conditions": LABEL},
        {
            "kind": "diffusion",
            "schedule": {"kind": "linear", "gamma_0": -6, "gamma_1": 4},
            "denoiser": {"network": {"kind": "mlp", "width": 16, "depth": 1}, "conditions": LABEL},
            "condition_dropout": 0.1,
        },
    ],
    ids=["vae", "diffusion"],
)
def test_labels_are_stored_and_restored(config_file, digits, tmp_path, model, capsys):
    config = load_config(str(config_file(model=model)))
    train_rank(config)
    steps = ["--steps", "3"] if model["kind"] == "diffusion" else []
    file, out = str(tmp_path / "set.lbz"), tmp_path / "out"
    compress([config.run, "validation", "--out", file, "--count", "50", *steps])
    assert "bytes are the conditions (label)" in capsys.readouterr().out
    decompress([config.run, file, "--out", str(out)])
    images, labels = images_of(out)
    whole, all_labels = images_of(digits / "validation")
    places = [int(np.nonzero((whole == image).all((1, 2, 3)))[0][0]) for image in images]
    assert labels == [all_labels[place] for place in places]
    assert len(labels) == 50
    if model["kind"] == "diffusion":
        compress([config.run, "validation", "--out", file, "--count", "20", *steps, "--condition", "none"])
        assert parse(Path(file).read_bytes(), file).header.conditions == []
        decompress([config.run, file, "--out", str(tmp_path / "without")])
    with pytest.raises(ConfigError, match="shuffled"):
        compress([config.run, "validation", "--out", file, "--condition", "shuffled", *steps])


def test_twenty_damaged_and_foreign_files_are_one_line_and_write_nothing(run, tmp_path):
    whole = (run / "digits.lbz").read_bytes()
    chance = random.Random(0)
    files = [whole[:size] for size in (0, 3, 4, 9, 50, len(whole) // 2, len(whole) - 1)]
    for _ in range(8):
        place = chance.randrange(len(whole))
        files.append(whole[:place] + bytes([whole[place] ^ 1 << chance.randrange(8)]) + whole[place + 1 :])
    files += [whole + b"x", b"\x89PNG\r\n\x1a\n" + whole, whole[4:], chance.randbytes(5000), whole + whole]
    assert len(files) == 20
    for i, data in enumerate(files):
        file = tmp_path / f"{i}.lbz"
        file.write_bytes(data)
        with pytest.raises(ConfigError, match=r"damaged|not a file of jobs.compress") as caught:
            decompress([str(run / "run"), str(file), "--out", str(tmp_path / "out")])
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()


def test_damage_below_a_right_checksum_never_becomes_pixels(run, tmp_path):
    """As if a bit had flipped before the file's own CRC was taken: the pixels' CRC is what decides."""
    whole = (run / "digits.lbz").read_bytes()[:-4]
    chance = random.Random(1)
    for i in range(12):
        place = chance.randrange(4, len(whole)) if i < 4 else chance.randrange(200, len(whole))
        body = whole[:place] + bytes([whole[place] ^ 1 << chance.randrange(8)]) + whole[place + 1 :]
        file = tmp_path / f"{i}.lbz"
        file.write_bytes(body + zlib.crc32(body).to_bytes(4, "little"))
        with pytest.raises((ConfigError, TrainingError)) as caught:
            decompress([str(run / "run"), str(file), "--out", str(tmp_path / "out"), "--anyway"])
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()


def test_another_model_and_another_environment_are_refused(run, config_file, tmp_path, monkeypatch):
    other = load_config(str(config_file(seed=1)))
    train_rank(other)
    out = ["--out", str(tmp_path / "out")]
    with pytest.raises(ConfigError, match="another model, or it has trained further"):
        decompress([other.run, str(run / "digits.lbz"), *out])
    real = decompress_job.environment
    monkeypatch.setattr(decompress_job, "environment", lambda device: real(device) | {"torch": "9.9.9"})
    with pytest.raises(ConfigError, match=rf"torch {re.escape(torch.__version__)} \(here 9.9.9\).*--anyway"):
        decompress([str(run / "run"), str(run / "digits.lbz"), *out])
    assert not (tmp_path / "out").exists()
    decompress([str(run / "run"), str(run / "digits.lbz"), *out, "--anyway"])  # it does repeat them here
    with pytest.raises(ConfigError, match="not empty"):
        decompress([str(run / "run"), str(run / "digits.lbz"), *out])


def test_what_cannot_be_compressed_is_one_line(run, config_file, tmp_path):
    out = ["--out", str(tmp_path / "x.lbz")]
    with pytest.raises(ConfigError, match="--count 0"):
        compress([str(run / "run"), "validation", *out, "--count", "0"])
    with pytest.raises(TrainingError, match="fixed number of latents"):
        compress([str(run / "run"), "validation", *out, "--steps", "4"])
    model = {"kind": "vae", "latent": 4, "encoder": NETWORK, "decoder": NETWORK, "likelihood": {"kind": "gaussian"}}
    density = load_config(str(config_file(model=model)))
    train_rank(density)
    with pytest.raises(TrainingError, match="density"):
        compress([density.run, "validation", *out])
    with pytest.raises(ConfigError, match="there is no such file"):
        decompress([str(run / "run"), str(tmp_path / "absent.lbz"), "--out", str(tmp_path / "out")])


def test_a_second_process_decodes_what_the_first_encoded(run, tmp_path):
    command = [sys.executable, "-m", "jobs.decompress", str(run / "run"), str(run / "digits.lbz")]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out")], cwd=REPOSITORY, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "checksum is right" in done.stdout


def test_the_table_is_of_the_same_images_in_every_format(run, capsys):
    compress([str(run / "run"), "validation", "--out", str(run / "table.lbz"), "--count", "40", "--table"])
    said = capsys.readouterr().out
    (report,) = [json.loads(path.read_text()) for path in (run / "run/evaluations").glob("*compress*.json")]
    rows = {row["name"]: row for row in report["rows"]}
    assert rows["file"]["bytes"] == (run / "table.lbz").stat().st_size
    assert rows["file"]["bpd"] == pytest.approx(8 * rows["file"]["bytes"] / (40 * 64))
    assert {"PNG, a file an image", "PNG, all in one picture", "WebP, all in one picture"} <= rows.keys()
    assert 0 < report["figures"]["compress/bound_bpd"] < 8
    assert "the model's bound" in said
    assert next((run / "run/evaluations").glob("*compress*.png")).stat().st_size > 1000


@pytest.mark.parametrize(("shape", "levels"), [((1, 8, 8), 2), ((1, 8, 8), 17), ((3, 5, 4), 256), ((2, 4, 4), 256)])
def test_other_formats_hold_the_images(shape, levels):
    images = torch.randint(0, levels, (7, *shape), dtype=torch.uint8)
    sizes = dict(yardsticks(images, levels))
    noise = 7 * np.prod(shape) * np.log2(levels) / 8  # bytes of random levels, which nothing can make smaller
    assert all(size is None or size > 0.9 * noise for size in sizes.values())
