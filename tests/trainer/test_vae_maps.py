"""Latents in maps."""

import pytest
import torch

from tests.trainer.models import ALL_MODELS, COLOUR, batch, build, training_noise
from trainer.images import ImageSpec
from trainer.models.vae import VaeConfig
from trainer.networks.attention import MapAttention
from trainer.noise import Noise

START = torch.tensor(0.0)


def of_maps(**changes: object) -> VaeConfig:
    return VaeConfig.model_validate(ALL_MODELS["vae-maps"][1] | changes)


@pytest.mark.parametrize(("height", "width", "sides"), [(32, 32, (8, 8)), (30, 21, (8, 6)), (4, 4, (1, 1))])
def test_maps_of_any_image(height, width, sides):
    model = of_maps().build(ImageSpec(3, height, width))
    assert model.latent_shape == (3, *sides)
    images, noise = torch.zeros(2, 3, height, width, dtype=torch.uint8), Noise(0, "evaluate", torch.arange(2))
    assert model.encode(images, noise).mean.shape == (2, 3, *sides)
    assert model.reconstruct(images, None, noise).shape == images.shape
    assert model.sample(noise).shape == images.shape


def test_beta_weighs_the_rates_of_the_objective_and_not_of_the_bound():
    images, noise = batch(COLOUR), training_noise()
    bounds = {}
    for beta in (1.0, 0.25):
        torch.manual_seed(0)
        elbo = of_maps(beta=beta).build(COLOUR)(images, None, noise, START)
        bounds[beta] = elbo.negative_bound
        expected = elbo.distortion + beta * elbo.rates["z1"]
        torch.testing.assert_close(elbo.loss, expected)
    assert torch.equal(bounds[1.0], bounds[0.25])
    warming = of_maps(beta=0.25, kl_warmup=100).build(COLOUR)(images, None, noise, torch.tensor(50.0))
    torch.testing.assert_close(warming.loss, warming.distortion + 0.125 * warming.rates["z1"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": {"kind": "mlp"}}, r"encoder\.kind: mlp is for latent vectors; maps .* need resnet"),
        ({"latent": {"downsample": 8}}, r"encoder\.channels: 3 resolutions reduce height and width by 4; .* is 8"),
        (
            {"decoder": {"kind": "resnet", "channels": [4, 8, 12], "attention": 5}},
            r"attention: 5 heads do not divide 12 channels",
        ),
    ],
)
def test_networks_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        of_maps(**changes).build(COLOUR)


def test_attention_is_at_the_smallest_map():
    model, seen = build("vae-maps"), []
    for module in model.modules():
        if isinstance(module, MapAttention):
            module.register_forward_hook(lambda _, inputs, output: seen.append(tuple(output.shape[1:])))
    model.reconstruct(batch(COLOUR, 1), None, Noise(0, "evaluate", torch.arange(1)))
    assert seen == [(12, 2, 2)] * 2
