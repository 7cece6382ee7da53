"""A run on images of any shape, from its training to an export."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import yaml
from PIL import Image

from datasets.errors import DataError
from jobs import evaluate, export, quality, sample
from jobs.config.loading import load_config
from jobs.config.resolved import resolve
from jobs.errors import ConfigError
from jobs.run.training import train_rank
from jobs.sizing.report import size_report
from tests.jobs.images import write_images
from tests.jobs.runs import assert_bitwise_equal, evaluation_rows, newest_tensors, training_rows
from trainer.checkpoints.export import load
from trainer.images import PatchSpec
from trainer.patches import whole_images
from trainer.sampling import sample as draw

SHAPES = [(4, 8), (8, 4), (6, 6)]  # 40 images of each
MODEL = {
    "kind": "diffusion",
    "denoiser": {
        "network": {"kind": "dit", "patch": 2, "width": 16, "depth": 1, "heads": 2, "positions": "rotary"},
        "prediction": {"kind": "mixture", "components": 2},
        "embedding": 16,
    },
    "sampling": {"steps": 3},
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("shapes")
    return [str(write_images(folder / f"{height}x{width}", (height, width))) for height, width in SHAPES]


@pytest.fixture(scope="module")
def run(tmp_path_factory, shards) -> str:
    """A finished run of 2 epochs."""
    return train(tmp_path_factory.mktemp("runs"), shards)


def train(folder: Path, shards: list[str], name: str = "run", images: int = 240) -> str:
    config = load_config(write(folder, shards, name, images))
    train_rank(config)
    return config.run


def write(folder: Path, shards: list[str], name: str = "run", images: int = 240, **model: object) -> str:
    transform = {"patches": 9, "patch": 2}
    trainer = {"images": images, "batch": 20, "log_every": 60, "evaluate_every": 120, "checkpoint_every": 120}
    config = {
        "run": f"{folder}/{name}",
        "model": MODEL | model,
        "data": {"shards": shards, "validation": shards, "streams": 4, "workers": 0, "transform": transform},
        "trainer": trainer | {"pictures": 4, "threads": 1},
        "optim": {"schedule": "constant"},
        "tracking": {"mode": "off"},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    return str(path)


def test_a_run_reports_bits_per_dimension_of_all_dimensions(run):
    description = json.loads((Path(run) / "model.json").read_text())
    assert description["images"]["patches"] == [9, 2, [[2, 4, 40], [3, 3, 40], [4, 2, 40]]]
    *_, row = evaluation_rows(run)
    mean = (36 + 32 + 32) / 3
    assert row["validation/dimensions"] == pytest.approx(mean)
    assert row["validation/bpd"] == pytest.approx(row["validation/nats"] / mean / 0.6931471805599453)
    assert 0 < row["validation/bpd_error"] < row["validation/bpd"]
    last = training_rows(run)[-1]
    assert last["train/bpd"] == pytest.approx(last["train/nats"] / mean / 0.6931471805599453, rel=0.02)
    assert list((Path(run) / "pictures").glob("samples-*.png"))


def test_a_run_that_was_stopped_continues_bit_for_bit(run, tmp_path, shards):
    train(tmp_path, shards, "stopped", 100)
    stopped = train(tmp_path, shards, "stopped")
    assert_bitwise_equal(newest_tensors(stopped), newest_tensors(run))
    assert training_rows(stopped)[-1] == training_rows(run)[-1]


def test_samples_have_the_size_that_is_asked_for(run, tmp_path):
    arguments = [run, "--count", "5", "--format", "images", "--processes", "1"]
    assert sample.main([*arguments, "--size", "4", "8", "--out", f"{tmp_path}/wide"]) == 0
    assert {Image.open(path).size for path in (tmp_path / "wide").glob("*.png")} == {(8, 4)}
    assert sample.main([*arguments, "--count", "40", "--out", f"{tmp_path}/any"]) == 0
    sizes = Counter(Image.open(path).size for path in (tmp_path / "any").glob("*.png"))
    assert sizes.keys() == {(8, 4), (4, 8), (6, 6)}
    assert min(sizes.values()) > 4
    assert sample.main([run, "--count", "4", "--out", f"{tmp_path}/grid"]) == 0
    assert sample.main([run, "--count", "2", "--trajectory", "strip", "--out", f"{tmp_path}/grid"]) == 0
    assert sample.main([run, "--count", "2", "--interpolate", "--size", "6", "6", "--out", f"{tmp_path}/grid"]) == 0
    assert sample.main([run, "--count", "9", "--format", "shards", "--out", f"{tmp_path}/shards"]) == 0


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (("5", "4"), r"--size: 5 x 4: height and width are multiples of the patch, 2"),
        (("8", "8"), r"--size: 8 x 8: has 16 patches; the model has images of up to 9"),
        (("a", "4"), r"--size a: Input should be a valid integer"),
    ],
)
def test_a_size_that_the_model_cannot_draw_is_one_line(run, tmp_path, size, message):
    with pytest.raises(ConfigError, match=message):
        sample.main([run, "--size", *size, "--out", f"{tmp_path}/out"])


def test_every_figure_of_a_run_can_be_made(run, capsys):
    assert evaluate.main([run]) == 0
    assert "120 images of validation" in capsys.readouterr().out
    evaluate.main([run, "--by-noise-level", "mlperf"])
    evaluate.main([run, "--against", run])
    said = capsys.readouterr().out
    assert "0.0000 ± 0.0000 nats, by the same noise" in said
    assert quality.main([run, "--count", "30"]) == 0
    assert "30 samples" in capsys.readouterr().out


def test_an_export_says_what_shapes_it_draws(run, tmp_path):
    export.export(run, f"{tmp_path}/out")
    card = (tmp_path / "out/README.md").read_text()
    assert "Images: of any shape, up to 9 patches of 2 x 2 pixels, 1 channels, 256 levels" in card
    model = load(f"{tmp_path}/out")
    assert model.spec.patches == PatchSpec(9, 2, ((2, 4, 40), (3, 3, 40), (4, 2, 40)))
    assert [image.shape for image in whole_images(draw(model, 2, size=(8, 4)), model.spec)] == [(1, 8, 4)] * 2


def test_the_size_of_a_run_has_its_share_of_padding(tmp_path, shards):
    said = size_report(resolve(load_config(write(tmp_path, shards))))
    assert "patches     up to 9 of 2 x 2 pixels an image, 7.4% padding; 4 x 8, 6 x 6, 8 x 4" in said


def test_a_network_that_needs_one_size_is_refused_in_one_line(tmp_path, shards):
    denoiser = {"network": {"kind": "unet", "channels": 4, "multipliers": [1]}}
    path = write(tmp_path, shards, denoiser=denoiser)
    with pytest.raises(
        ConfigError, match=r"^data.transform.patches: this model of kind diffusion takes images of one s"
    ):
        resolve(load_config(path))


def test_an_index_without_sizes_is_refused_in_one_line(tmp_path):
    folders = [write_images(tmp_path / str(size), (size, size)) for size in (4, 6)]
    for path in (folders[1] / "index" / "columns").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"the column table of 0.tar is missing; run python -m jobs.index"):
        resolve(load_config(write(tmp_path, [str(folder) for folder in folders])))
