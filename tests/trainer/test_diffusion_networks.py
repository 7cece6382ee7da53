"""The denoisers' networks, all by one list: shapes, noise by image, number formats, memory layouts, compilation."""

import pytest
import torch

from trainer.images import ImageSpec
from trainer.models.diffusion import DiffusionConfig
from trainer.noise import Noise

SPEC = ImageSpec(3, 12, 8, 17, classes=4)
ALL_NETWORKS = {
    "mlp": {"kind": "mlp", "width": 32, "depth": 2, "dropout": 0.2},
    "unet": {"kind": "unet", "channels": 8, "multipliers": [1, 2, 2], "blocks": 1, "attention": [6], "dropout": 0.2},
    "vdm_unet": {"kind": "vdm_unet", "channels": 8, "depth": 1, "dropout": 0.2},
    "dit": {"kind": "dit", "patch": 2, "width": 32, "depth": 2, "heads": 4, "dropout": 0.2},
}
PREDICTIONS = ["x0", "eps", "v", "levels", "mixture"]


def built(network: str, prediction: str = "eps", **settings):
    """A small model with weights that are nowhere zero."""
    torch.manual_seed(0)
    denoiser = {
        "network": ALL_NETWORKS[network],
        "prediction": {"kind": prediction},
        "fourier": [2, 3],
        "embedding": 16,
        "conditions": {"label": {"kind": "class", "classes": 4}},
    }
    model = DiffusionConfig(kind="diffusion", denoiser=denoiser, condition_dropout=0.3, **settings).build(SPEC)
    for parameter in model.diffuser.denoiser.parameters():
        torch.nn.init.normal_(parameter, 0, 0.1)
    return model


def batch(n: int = 6, purpose: str = "train"):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 17, (n, *SPEC.shape), dtype=torch.uint8, generator=generator)
    condition = {"label": torch.arange(n) % 4}
    return images, condition, Noise(5, purpose, torch.arange(n), batch=n), torch.tensor(0.0)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("network", ALL_NETWORKS)
def test_every_network_makes_every_prediction(network, prediction):
    elbo = built(network, prediction)(*batch())
    assert elbo.negative_bound.shape == (6,)
    assert elbo.negative_bound.isfinite().all()


@pytest.mark.parametrize("network", ALL_NETWORKS)
def test_the_bound_of_an_image_does_not_depend_on_its_batch(network):
    model = built(network)
    images, condition, noise, progress = batch()
    whole = model(images, condition, noise, progress).negative_bound
    part = Noise(5, "train", torch.arange(2, 5), batch=6)
    share = model(images[2:5], {"label": condition["label"][2:5]}, part, progress).negative_bound
    torch.testing.assert_close(whole[2:5], share, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("network", ALL_NETWORKS)
def test_every_parameter_has_a_gradient(network):
    model = built(network)
    model(*batch()).loss.sum().backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert missing == []


@pytest.mark.parametrize("network", ALL_NETWORKS)
def test_dropout_acts_in_training_only(network):
    model = built(network)
    images, condition, noise, _ = batch(purpose="evaluate")
    x = SPEC.scaled(images)
    gamma = torch.zeros(6)

    def estimate(noise):
        return model.diffuser.denoiser(x, gamma, condition, noise).eps

    assert torch.equal(estimate(noise), estimate(Noise(6, "evaluate", noise.positions)))
    assert not torch.equal(estimate(Noise(5, "train", noise.positions)), estimate(Noise(6, "train", noise.positions)))


@pytest.mark.parametrize("network", ALL_NETWORKS)
def test_noise_level_and_label_reach_the_network(network):
    model = built(network)
    images, _, noise, _ = batch(purpose="evaluate")
    x = SPEC.scaled(images)

    def eps(gamma, label):
        return model.diffuser.denoiser(x, torch.full((6,), gamma), label, noise).eps

    zeros, ones = ({"label": torch.full((6,), label)} for label in (0, 1))
    assert not torch.allclose(eps(0.0, zeros), eps(1.0, zeros))
    assert not torch.allclose(eps(0.0, zeros), eps(0.0, ones))
    torch.testing.assert_close(eps(0.0, None), eps(0.0, {"label": torch.full((6,), -1)}))


@pytest.mark.parametrize("network", ALL_NETWORKS)
def test_channels_last_changes_nothing(network):
    model = built(network)
    expected = model(*batch()).negative_bound
    torch.testing.assert_close(model.to(memory_format=torch.channels_last)(*batch()).negative_bound, expected)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("network", ALL_NETWORKS)
def test_the_bound_stays_float32_under_bf16(network, prediction):
    model = built(network, prediction, schedule={"kind": "linear", "gamma_0": -6})
    expected = model(*batch())
    with torch.autocast("cpu", torch.bfloat16):
        elbo = model(*batch())
    assert elbo.negative_bound.dtype == torch.float32
    torch.testing.assert_close(elbo.rates["prior"], expected.rates["prior"])
    torch.testing.assert_close(elbo.distortion, expected.distortion)
    torch.testing.assert_close(elbo.rates["diffusion"], expected.rates["diffusion"], rtol=0.1, atol=1)


@pytest.mark.parametrize("network", ALL_NETWORKS)
def test_compiles_without_graph_breaks(network):
    """Under autocast, with its float32 layers: the graph as the compiler traces it, without the kernels made of it."""
    model = built(network, schedule={"kind": "learned" if network == "mlp" else "linear"})
    with torch.autocast("cpu", torch.bfloat16):
        expected = model(*batch()).loss.sum()
    expected.backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    torch._dynamo.reset()
    with torch.autocast("cpu", torch.bfloat16):
        loss = torch.compile(model, backend="eager", fullgraph=True)(*batch()).loss.sum()
    torch.testing.assert_close(loss, expected)
    loss.backward()
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-2)


def test_a_patch_that_does_not_fit_is_refused_in_words():
    with pytest.raises(ValueError, match=r"network\.patch: 5 does not divide 12 x 8 pixels"):
        DiffusionConfig(
            kind="diffusion", denoiser={"network": {"kind": "dit", "patch": 5}, "prediction": {"kind": "eps"}}
        ).build(SPEC)
