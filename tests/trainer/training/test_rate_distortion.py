"""The levels' bits add up to the bound, and the image comes closer with each."""

from __future__ import annotations

import pytest
import torch
from pydantic import TypeAdapter

from datasets.loading.batches import Batch
from tests.trainer.coding.test_coders import latent
from tests.trainer.models import ALL_MODELS, BINARY, batch, build
from trainer.errors import TrainingError
from trainer.models import ModelConfig
from trainer.training.image_bounds import Estimate
from trainer.training.rate_distortion import rate_distortion


def batches(model, count=8):
    """One batch, whose last image does not count."""
    images = batch(model.spec, count)
    weights = torch.ones(count)
    weights[-1] = 0
    return [Batch(images, torch.arange(count), weights, {})]


@pytest.mark.parametrize("name", ["hvae", "ladder-mlp", "ladder-nvae"])
def test_the_rates_of_a_hierarchy_are_those_of_its_bound(name):
    model = build(name)
    found = rate_distortion(model, batches(model), Estimate(0), {})
    assert found.images == 7
    assert [level.name for level in found.levels] == [*(f"z{t}" for t in range(model.levels, 0, -1)), "distortion"]
    noise = Estimate(0).noise(torch.arange(8))
    with torch.no_grad():
        elbo = model.eval()(batch(model.spec), None, noise, torch.zeros(()))
        made = model.reconstruct(batch(model.spec), None, noise)
    assert found.levels[-1].nats == pytest.approx(elbo.negative_bound.double()[:7].mean().item(), rel=1e-5)
    assert found.levels[-1].squared_error == 0
    difference = (made.double() - batch(model.spec).double()) * 255 / (model.spec.levels - 1)
    assert found.levels[-2].squared_error == pytest.approx(difference.square()[:7].mean().item())


def test_the_steps_of_a_diffusion_add_up_to_its_bound_and_approach_the_image():
    schedule = {"kind": "linear", "gamma_0": -4, "gamma_1": 6}
    config = ALL_MODELS["diffusion"][1] | {"steps": 12, "schedule": schedule}
    torch.manual_seed(0)
    model = TypeAdapter(ModelConfig).validate_python(config).build(BINARY)
    found = rate_distortion(model, batches(model, 65), Estimate(0), {})
    assert len(found.levels) == 14
    errors = [level.squared_error for level in found.levels]
    assert errors[-2] < errors[6] < errors[0]
    nats = [level.nats for level in found.levels]
    assert nats == sorted(nats)
    with torch.no_grad():
        bound = Estimate(0, draws=200).nats(model.eval(), batches(model, 65)[0], None)[:-1].mean().item()
    assert nats[-1] == pytest.approx(bound, rel=0.03)


def test_a_latent_diffusion_ends_with_the_latents_of_its_autoencoder():
    torch.manual_seed(0)
    model = latent(BINARY, {"kind": "bernoulli"})
    found = rate_distortion(model, batches(model), Estimate(0), {})
    assert [level.name for level in found.levels] == ["z4", "z3", "z2", "z1", "z0", "z", "distortion"]


def test_one_level_has_no_curve():
    model = build("vae-mlp")
    with pytest.raises(TrainingError, match="one level"):
        rate_distortion(model, batches(model), Estimate(0), {})
