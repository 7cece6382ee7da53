"""`resolve`: what the data and the machine decide about a configuration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from datasets.errors import DataError
from jobs.config.loading import load_config
from jobs.config.resolved import resolve
from jobs.errors import ConfigError
from jobs.run.training import train_rank
from jobs.sizing.report import size_report
from tests.jobs.images import write_images
from trainer.images import ImageSpec


def test_streams_images_and_held_out_set_come_from_the_data(config_file: Callable[..., Path]) -> None:
    run = resolve(load_config(str(config_file(data={"streams": "auto"}))))
    assert run.streams == run.config.data.streams == 64
    assert run.spec == ImageSpec(1, 8, 8, 17, 10)
    assert (run.index.images, run.held_out.images) == (1527, 270)
    assert resolve(load_config(str(config_file(data={"validation": ""})))).held_out is None


def test_resolving_twice_changes_nothing(config_file: Callable[..., Path]) -> None:
    run = resolve(load_config(str(config_file(data={"streams": "auto"}))))
    assert resolve(run.config).config == run.config


def test_local_paths_become_absolute(
    config_file: Callable[..., Path], digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(digits)
    model = {
        "kind": "latent",
        "first_stage": {"kind": "run", "url": "runs/vae"},
        "denoiser": {"network": {"kind": "mlp"}, "prediction": {"kind": "eps"}},
    }
    relative = {"shards": "train", "validation": "validation"}
    path = config_file(run="runs/a", model=model, init_from="runs/b", data=relative)
    config = resolve(load_config(str(path))).config
    assert config.run == f"{digits}/runs/a"
    assert config.init_from == f"{digits}/runs/b"
    assert config.model.first_stage.url == f"{digits}/runs/vae"
    assert config.data.shards == f"{digits}/train"


@pytest.mark.parametrize(
    ("given", "gpu", "precision"),
    [("auto", True, "bf16"), ("auto", False, "fp32"), ("fp32", True, "fp32"), ("bf16", False, "bf16")],
)
def test_the_device_decides_what_auto_precision_means(
    config_file: Callable[..., Path], given: str, gpu: bool, precision: str
) -> None:
    config = load_config(str(config_file(trainer={"precision": given})))
    assert resolve(config, gpu).precision == precision
    assert resolve(config, gpu).config.trainer.precision == given


def test_streams_that_do_not_divide_the_batch_are_refused(config_file: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match=r"data\.streams=7 must divide the global batch of 64 images: 8 does"):
        resolve(load_config(str(config_file(data={"streams": 7}))))


def test_another_batch_than_the_runs_is_named_before_the_streams_that_do_not_divide_it(
    config_file: Callable[..., Path],
) -> None:
    config = load_config(str(config_file(trainer={"images": 64})))
    train_rank(config)
    with pytest.raises(ConfigError, match=r"^.*run: trainer.batch is 64 in the run and 66 here; data.streams=4 must"):
        resolve(load_config(str(config_file()), ["trainer.batch=66"]))


def conditioned(**conditions: object) -> dict[str, object]:
    network = {"kind": "mlp", "width": 16, "depth": 1}
    return {"kind": "diffusion", "denoiser": {"network": network, "embedding": 8, "conditions": conditions}}


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        (
            {"class": {"kind": "class"}},
            "model.denoiser.conditions.class: nothing in the data feeds this condition; they have label (class): ",
        ),
        (
            {"label": {"kind": "class"}, "clip": {"kind": "vector", "size": 4}},
            "model.denoiser.conditions.clip: nothing in the data feeds this condition; they have label (class): ",
        ),
        (
            {"label": {"kind": "vector", "size": 4}},
            "model.denoiser.conditions.label.kind: is vector; label of the data is of kind class",
        ),
        (
            {"label": {"kind": "class", "classes": 9}},
            "model.denoiser.conditions.label.classes: 9; the data has 10 classes: ",
        ),
    ],
)
def test_a_condition_that_nothing_feeds_is_refused_before_anything_is_trained(
    config_file: Callable[..., Path], conditions: dict[str, object], message: str
) -> None:
    config = load_config(str(config_file(model=conditioned(**conditions))))
    for build in (lambda: train_rank(config), lambda: size_report(resolve(config))):
        with pytest.raises(ConfigError) as refused:
            build()
        assert str(refused.value).startswith(message)
    assert not any(Path(config.run).glob("checkpoints/*"))


def test_images_without_labels_feed_no_label(config_file: Callable[..., Path], tmp_path: Path) -> None:
    bare = str(write_images(tmp_path / "bare", levels=17))
    path = config_file(model=conditioned(label={"kind": "class"}), data={"shards": bare, "validation": ""})
    with pytest.raises(
        ConfigError, match=r"label: nothing in the data feeds this condition; the images have no labels"
    ):
        resolve(load_config(str(path))).build_model()


@pytest.mark.parametrize("kind", ["vae", "hvae", "ladder"])
def test_models_that_take_images_of_one_size_refuse_patches(config_file: Callable[..., Path], kind: str) -> None:
    stages = {"stages": [{"width": 8, "latent": 2}]} if kind == "ladder" else {}
    latents = {"latent": 4} if kind == "vae" else {"latents": [4, 4]} if kind == "hvae" else {}
    path = config_file(model={"kind": kind, **latents, **stages}, data={"transform": {"patches": 4, "patch": 4}})
    with pytest.raises(
        ConfigError, match=rf"^data.transform.patches: this model of kind {kind} takes .*; set data.transform.size: \["
    ):
        resolve(load_config(str(path)))
