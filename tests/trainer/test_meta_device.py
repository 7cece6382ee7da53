"""A step of every model on the device "meta": a tensor that is made on the CPU instead raises there, as on a GPU."""

from __future__ import annotations

import pytest
import torch
from pydantic import TypeAdapter

from jobs.config.loading import load_config
from tests.jobs.test_configs import IMAGES, configurations, small
from tests.trainer.models import ALL_MODELS
from trainer.images import ImageSpec
from trainer.models import Model, ModelConfig
from trainer.noise import Noise

META = torch.device("meta")


def steps(model: Model) -> None:
    """A training step, an evaluation, and what is shown: every path to the bound, the samples and the latents."""
    spec = model.spec
    images = torch.zeros(2, *spec.shape, dtype=torch.uint8, device=META)
    label = {"label": torch.zeros(2, dtype=torch.int64, device=META)} if spec.classes else None
    positions = torch.zeros(2, dtype=torch.int64, device=META)
    model(images, label, Noise(0, "train", positions, 2), torch.zeros((), device=META)).loss.mean().backward()
    assert all(p.grad is not None and p.grad.device == META for p in model.parameters() if p.requires_grad)
    noise = Noise(0, "evaluate", positions)
    with torch.no_grad():
        terms = model.bounds["elbo"].terms(images, label, noise, 2)
        assert all(term.device == META and term.shape == (2,) for term in terms.values())
        made = model.reconstruct(images, label, noise)
        assert made.device == META
        assert made.dtype == torch.uint8


def on_meta(config: ModelConfig, spec: ImageSpec) -> Model:
    with META:
        return config.build(spec)


@pytest.mark.parametrize("name", ALL_MODELS)
def test_no_model_makes_a_tensor_on_another_device(name):
    spec, config = ALL_MODELS[name]
    model = on_meta(TypeAdapter(ModelConfig).validate_python(config), spec)
    steps(model)
    with torch.no_grad():
        noise = Noise(0, "sample", torch.zeros(2, dtype=torch.int64, device=META))
        assert model.sample(noise).device == META
        assert model.log_weights(torch.zeros(2, *spec.shape, dtype=torch.uint8, device=META), None, noise, 2).shape == (
            2,
            2,
        )


@pytest.mark.parametrize("path", configurations(), ids=lambda path: path.stem)
def test_no_configuration_makes_a_tensor_on_another_device(path):
    """At reduced width and depth: the same paths in less time."""
    config = small(load_config(str(path)))
    steps(on_meta(config.model, IMAGES[path.stem.partition("-")[0]]))
