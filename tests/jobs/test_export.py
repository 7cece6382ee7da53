"""A run's model by itself: it opens, computes what the run computes, and its card says what was measured."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import trainer
from cluster.storage.storage import Storage
from jobs.config.loading import load_config
from jobs.errors import ConfigError
from jobs.export import card, export
from jobs.run.training import train_rank
from tests.jobs.conftest import BATCH
from tests.jobs.runs import newest_tensors
from tests.testbed.jobs import call_job
from tests.testbed.s3 import S3Server
from trainer.checkpoints.commit import Commit, CommitFolder
from trainer.checkpoints.export import open_model
from trainer.checkpoints.journal import read_metrics
from trainer.checkpoints.reading import SavedState
from trainer.errors import TrainingError
from trainer.noise import Noise
from trainer.tracking.captions import caption_of


@pytest.fixture
def run(config_file: Callable[..., Path]) -> Path:
    """The folder of a run that has finished."""
    config = load_config(str(config_file()))
    train_rank(config)
    return Path(config.run)


def sampled(model: trainer.Model) -> Tensor:
    with torch.no_grad():
        return model.sample(Noise(seed=1, purpose="sample", positions=torch.arange(8)))


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_an_export_is_the_runs_own_model(run: Path, tmp_path: Path, weights: str) -> None:
    out = tmp_path / "exported"
    told = call_job("export", str(run), "--out", str(out), "--weights", weights)
    assert told.status == 0, told.stderr
    assert told.stdout == f"exported {weights} weights after {20 * BATCH:,} images: {out}\n"
    exported, own = trainer.load(str(out)), trainer.load(str(run), weights)
    for name, value in own.state_dict().items():
        torch.testing.assert_close(exported.state_dict()[name], value, rtol=0, atol=0)
    assert sampled(exported).equal(sampled(own))
    newest = newest_tensors(run)
    section = "ema" if weights == "ema" else "model"
    for name, value in exported.named_parameters():
        torch.testing.assert_close(value.detach(), newest[f"{section}/{name}"], rtol=0, atol=0)


@pytest.fixture
def out(run: Path, tmp_path: Path) -> Path:
    """The run's exported model."""
    export(str(run), str(tmp_path / "exported"))
    return tmp_path / "exported"


def test_the_card_says_the_figures_that_the_run_measured_and_of_what(run: Path, out: Path) -> None:
    text = (out / "README.md").read_text()
    last = {key: value for row in read_metrics(Storage(str(run))) for key, value in row.items()}
    of = "validation split, averaged weights, at 1,280 images, unconditional"
    assert f"| {last['validation/bpd']:.4f} | {of} |" in text
    assert f"{last['validation/nats']:.3f} ± {last['validation/standard_error']:.3f}" in text
    assert f"| rate z1, nats an image | {last['validation/rate/z1']:.3f} |" in text
    assert f"| {last['train/bpd']:.4f} | train split, raw weights, at 1,280 images" in text
    parameters = sum(value.numel() for value in trainer.load(str(run)).parameters())
    assert f"# vae: {parameters:,} parameters" in text
    assert "8 x 8 pixels, 1 channels, 17 levels, 10 classes" in text
    assert (out / "samples.png").read_bytes() == (run / "pictures" / "samples-000000001280.png").read_bytes()


def test_the_card_says_what_its_picture_shows(out: Path) -> None:
    text = (out / "README.md").read_text()
    caption = "samples, unconditional, means of p(x | z), averaged weights"
    assert f"![{caption}](samples.png)\n\nS{caption[1:]}.\n" in text
    assert caption_of((out / "samples.png").read_bytes()) == caption


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_a_checkpoint_is_opened_by_its_folder(run: Path, weights: str) -> None:
    for folder in (run / "checkpoints").iterdir():
        opened = open_model(f"{folder}/", weights)
        commit = Commit.named(folder.name)
        assert commit
        saved = SavedState(CommitFolder(Storage(str(run)), commit), ("model", "ema"))
        tensors = saved.tensors("model") | (saved.tensors("ema") if weights == "ema" else {})
        assert (opened.weights, opened.images) == (weights, int(folder.name[:12]))
        assert all(opened.model.state_dict()[name].equal(value) for name, value in tensors.items())
    with pytest.raises(TrainingError, match="best weights are of a run; of a checkpoint there are ema and raw"):
        trainer.load(str(folder), "best")
    with pytest.raises(TrainingError):
        trainer.load(str(run / "checkpoints/000000000001-0001"))


def test_the_card_says_how_often_the_set_was_seen_and_of_which_classes(out: Path) -> None:
    text = (out / "README.md").read_text()
    assert "Trained on 1,280 images of a set of 1,527 (0.8 times each) in batches of 64, seed 0." in text
    assert "Conditions: none; the classes were not given to the model." in text
    assert json.loads((out / "config.json").read_text())["class_names"] == [str(digit) for digit in range(10)]
    assert trainer.load(str(out)).class_names == tuple(str(digit) for digit in range(10))


def test_the_card_of_a_conditional_model_names_its_classes_and_samples_one(
    config_file: Callable[..., Path], tmp_path: Path
) -> None:
    network = {"kind": "mlp", "width": 16, "depth": 1}
    model = {"kind": "diffusion", "denoiser": {"network": network, "conditions": {"label": {"kind": "class"}}}}
    config = load_config(str(config_file(model=model | {"sampling": {"steps": 2}}, trainer={"pictures": 0})))
    train_rank(config)
    export(config.run, str(tmp_path / "exported"))
    text = (tmp_path / "exported/README.md").read_text()
    assert "Conditions: label." in text
    assert "Classes, from number 0: `0`, `1`, `2`, `3`, `4`, `5`, `6`, `7`, `8`, `9`." in text
    assert "unconditional" not in text
    assert "trainer.sample(model, 16, label='0', seed=0)" in text
    images = example_of(tmp_path / "exported")
    assert (images.shape, images.dtype) == ((16, 1, 8, 8), torch.uint8)
    command = re.search(r"```\npython -m jobs.sample (.*?)\n```", text)
    assert command
    arguments = shlex.split(command[1])
    arguments[arguments.index("samples")] = str(tmp_path / "samples")
    told = call_job("sample", *arguments, "--processes", "1")
    assert told.status == 0, told.stderr
    made = call_job(
        *("sample", str(tmp_path / "exported"), "--count", "16", "--label", "number:0"),
        *("--processes", "1", "--out", str(tmp_path / "numbered")),
    )
    assert made.status == 0, made.stderr
    assert (tmp_path / "samples/grid.png").read_bytes() == (tmp_path / "numbered/grid.png").read_bytes()


def test_names_of_classes_cannot_break_the_card() -> None:
    names = ["a`b\n# c", "<script>", "quote\"'s"]
    description = {
        "model": {"kind": "vae"},
        "images": {"channels": 1, "height": 8, "width": 8, "levels": 17, "classes": 3},
        "class_names": names * 40,
        "images_seen": 10,
        "weights": "ema",
        "batch": 5,
        "seed": 0,
    }
    text = card(description, 100, [], "out", pictures={}, conditions=("label",))
    assert "`ab # c`, `<script>`, `quote\"'s`" in text
    assert "and 70 more, all in `config.json`." in text
    assert "\n# c" not in text
    assert "label=0" in text  # no name is unique
    assert "of a set of" not in text
    code = re.search(
        r"```python\n(.*?)```", card(description | {"class_names": names}, 1, [], "o'u", {}, ("label",)), re.S
    )
    assert code
    assert compile(code[1], "card", "exec").co_names


def example_of(out: Path) -> Tensor:
    """The images that the example of a model card makes."""
    code = re.search(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)
    assert code
    names: dict[str, object] = {}
    exec(code[1], names)
    images = names["images"]
    assert isinstance(images, Tensor)
    return images


def test_the_cards_example_runs(out: Path) -> None:
    images = example_of(out)
    assert (images.shape, images.dtype) == ((16, 1, 8, 8), torch.uint8)
    noise = Noise(seed=0, purpose="sample", positions=torch.arange(16))
    with torch.no_grad():
        assert images.equal(trainer.load(str(out)).sample(noise))


def test_an_export_names_no_place_of_its_run(run: Path, out: Path) -> None:
    written = (out / "config.json").read_text() + (out / "README.md").read_text()
    assert str(run) not in written
    assert "shards" not in written


def test_a_density_is_not_given_in_bits_per_dimension() -> None:
    rows = [{"images": 10, "validation/nats": -3.25, "validation/standard_error": 0.5, "validation/distortion": -4.0}]
    description = {
        "model": {"kind": "vae"},
        "images": {"channels": 1, "height": 8, "width": 8, "levels": 17, "classes": 0},
        "images_seen": 10,
        "weights": "raw",
        "batch": 5,
        "seed": 0,
    }
    text = card(description, 100, rows, "out", {})
    assert "| negative bound of a density, nats an image | -3.250 ± 0.500 |" in text
    assert "bits per dimension" not in text
    assert "validation figures are those of the averaged ones" in text
    assert "samples.png" not in text


def test_an_export_goes_into_an_object_store(run: Path, s3_environment: S3Server) -> None:
    url = s3_environment.bucket("exports") + "/vae"
    export(str(run), url)
    assert sampled(trainer.load(url)).equal(sampled(trainer.load(str(run))))


def test_a_folder_without_a_run_cannot_be_exported(tmp_path: Path) -> None:
    told = call_job("export", str(tmp_path / "no-run"), "--out", str(tmp_path / "exported"))
    assert told.status == 1
    assert told.stderr == f"error: {tmp_path}/no-run: no checkpoint here; name the folder of a run (its key `run`)\n"


def test_another_model_is_not_overwritten(run: Path, out: Path) -> None:
    with pytest.raises(ConfigError, match="holds a model already; give --out another folder"):
        export(str(run), str(out), "raw")
    assert '"weights": "ema"' in (out / "config.json").read_text()


def test_a_damaged_checkpoint_is_not_exported(run: Path, tmp_path: Path) -> None:
    newest = max((run / "checkpoints").iterdir())
    file = newest / "ema.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(TrainingError, match="its content is not what the manifest says"):
        export(str(run), str(tmp_path / "exported"))
    assert not (tmp_path / "exported").exists()


def test_config_json_rebuilds_the_model(out: Path) -> None:
    facts = json.loads((out / "config.json").read_text())
    assert facts["images_seen"] == 20 * BATCH
    assert facts["weights"] == "ema"
    assert facts["model"]["kind"] == "vae"
