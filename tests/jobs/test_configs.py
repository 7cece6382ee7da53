"""Every configuration trains; the large ones at reduced width, those of a latent diffusion over an untrained model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.config.loading import load_config
from jobs.config.schema import RunConfig
from tests.testbed.processes import REPOSITORY
from trainer.condition_values import TextSpec
from trainer.images import ImageSpec
from trainer.models import Model
from trainer.models.latent import LatentConfig
from trainer.noise import Noise
from trainer.training.optimizer import adamw

IMAGES = {
    "digits": ImageSpec(1, 8, 8, 17, 10),
    "mnist": ImageSpec(1, 28, 28, 2),
    "mnist8": ImageSpec(1, 28, 28, 256, 10),
    "fashion": ImageSpec(1, 28, 28, 256, 10),
    "cifar10": ImageSpec(3, 32, 32, 256, 10),
    "imagenet64": ImageSpec(3, 64, 64, 256, 1000),
    "imagenet256": ImageSpec(3, 256, 256, 256, 1000),
    "text64": ImageSpec(3, 64, 64, 256, texts=(TextSpec("caption", 16_384, 64),)),
    "text256": ImageSpec(3, 256, 256, 256, texts=(TextSpec("caption", 32_768, 128),)),
    "text512": ImageSpec(3, 64, 64, 256, texts=(TextSpec("caption", 32_768, 128),)),
    "icons": ImageSpec(1, 24, 24, 2, texts=(TextSpec("caption", 2048, 16),)),
}
FOLDER = REPOSITORY / "jobs" / "configs"


def configurations(latent: bool = False) -> list[Path]:
    paths = sorted(FOLDER.glob("*.yaml"))
    return [path for path in paths if isinstance(load_config(str(path)).model, LatentConfig) is latent]


def reduced(values: Any) -> Any:
    """The same layout with few channels, one cell where there are many, and two groups where there are more."""
    most = {
        "width": 8,
        "cells_up": 1,
        "groups": 2,
        "repeat": 2,
        "latent": 4,
        "components": 2,
        "blocks": 1,
        "depth": 1,
        "heads": 2,
        "embedding": 16,
    }
    if isinstance(values, dict):
        return {
            key: min(value, most[key]) if key in most and isinstance(value, int) else reduced_list(key, value)
            for key, value in values.items()
        }
    return [reduced(value) for value in values] if isinstance(values, (list, tuple)) else values


def reduced_list(key: str, value: Any) -> Any:
    if key in ("hidden", "channels", "latents") and value is not None:
        return [min(width, 8) for width in value] if isinstance(value, (list, tuple)) else min(value, 8)
    return reduced(value)


def small(config: RunConfig) -> RunConfig:
    values = config.model_dump()
    return RunConfig.model_validate(values | {"model": reduced(values["model"])})


@pytest.mark.parametrize("path", configurations(), ids=lambda path: path.stem)
def test_two_steps_at_reduced_width(path):
    config = small(load_config(str(path)))
    spec = IMAGES[path.stem.partition("-")[0]]
    torch.manual_seed(0)
    take_two_steps(config, config.model.build(spec))


@pytest.mark.parametrize("path", configurations(latent=True), ids=lambda path: path.stem)
def test_two_steps_of_latent_diffusions_at_reduced_width(path, tmp_path):
    config, spec = small(load_config(str(path))), IMAGES[path.stem.partition("-")[0]]
    torch.manual_seed(0)
    if config.model.first_stage.kind == "diffusers":
        diffusers = pytest.importorskip("diffusers")
        channels = (4,) * 4
        kinds = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
        autoencoder = diffusers.AutoencoderKL(block_out_channels=channels, norm_num_groups=2, **kinds)
        autoencoder.save_pretrained(tmp_path)
        first_stage = config.model.first_stage.model_copy(update={"path": str(tmp_path)})
        config = config.model_copy(update={"model": config.model.model_copy(update={"first_stage": first_stage})})
    first = Path(getattr(config.model.first_stage, "url", "")).name
    model = config.model.build_new(spec, lambda url: small(load_config(f"{FOLDER}/{first}.yaml")).model.build(spec))
    model.measure([torch.randint(0, spec.levels, (2, *spec.shape), dtype=torch.uint8)])
    take_two_steps(config, model)
    assert model.diffuser.shape[1] < spec.height


def take_two_steps(config: RunConfig, model: Model) -> None:
    spec = model.spec
    optimizer = adamw(model, config.optim)
    images = torch.randint(0, spec.levels, (2, *spec.shape), dtype=torch.uint8)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    before = [parameter.detach().clone() for parameter in trained]
    for step in range(2):
        noise = Noise(0, "train", torch.arange(2 * step, 2 * step + 2), batch=2)
        loss = model(images, None, noise, torch.tensor(1e6)).loss.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert loss.isfinite()
        assert all(parameter.grad is not None for parameter in trained)
    assert any(not torch.equal(old, new) for old, new in zip(before, trained, strict=True))


@pytest.mark.parametrize("path", configurations(), ids=lambda path: path.stem)
def test_settings_agree_with_each_other(path):
    config = load_config(str(path))
    assert config.run == f"runs/{path.stem}"  # two configurations never share a run folder
    assert config.data.streams == "auto" or config.trainer.batch % config.data.streams == 0
    assert getattr(config.model, "kl_warmup", 0) < config.trainer.images


@pytest.mark.parametrize(
    ("name", "millions", "levels"),
    [("cifar10-ladder", 39, 43), ("imagenet64-ladder", 123, 75), ("cifar10-nvae", 132, 30)],
)
def test_the_papers_networks_have_their_size(name, millions, levels):
    config = load_config(str(FOLDER / f"{name}.yaml"))
    with torch.device("meta"):
        model = config.model.build(IMAGES[name.partition("-")[0]])
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6) == millions
    assert model.levels == levels
