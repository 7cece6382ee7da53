"""Samples are draws of p(x | z) unless its mean is asked for; pictures show means and say so."""

from __future__ import annotations

import pytest
import torch
from pydantic import TypeAdapter
from torch import nn

import trainer
from tests.trainer.models import ALL_MODELS
from tests.trainer.test_latent import over
from trainer.images import ImageSpec
from trainer.models import Model, ModelConfig
from trainer.noise import Noise

SPEC = ImageSpec(1, 16, 16, 2)
LOGIT = -2.0  # of ink: sigmoid(-2) = 0.119
KINDS = ("vae-mlp", "hvae", "ladder-mlp", "latent")


def constant(name: str) -> Model:
    """A model whose p(x | z) has ink with probability sigmoid(LOGIT) in each pixel, whatever z."""
    _, values = ALL_MODELS["vae-mlp" if name == "latent" else name]
    torch.manual_seed(0)
    model = TypeAdapter(ModelConfig).validate_python(dict(values) | {"likelihood": {"kind": "bernoulli"}}).build(SPEC)
    network = model.output if name == "ladder-mlp" else model.decoder
    (last,) = [part for part in network.modules() if isinstance(part, nn.Linear)][-1:]
    nn.init.zeros_(last.weight)
    nn.init.constant_(last.bias, LOGIT)
    if name != "latent":
        return model
    denoiser = {"network": {"kind": "mlp", "width": 16, "depth": 1}, "prediction": {"kind": "eps"}}
    return over(model, denoiser=denoiser, sampling={"steps": 2})


@pytest.mark.parametrize("name", KINDS)
def test_samples_are_draws_and_means_on_request(name: str) -> None:
    model, ink = constant(name), torch.tensor(LOGIT).sigmoid().item()
    noise = Noise(0, "sample", torch.arange(200))
    with torch.no_grad():
        drawn, means = model.sample(noise), model.sample(noise, decode="mean")
    error = (ink * (1 - ink) / drawn.numel()) ** 0.5
    assert drawn.float().mean().item() == pytest.approx(ink, abs=5 * error)
    assert means.float().mean() == 0
    assert trainer.sample(model, 200).equal(drawn)
    assert trainer.sample(model, 200, decode="mean").equal(means)
    with pytest.raises(ValueError, match="decode"):
        trainer.sample(model, 2, decode="median")


@pytest.mark.parametrize("name", KINDS)
def test_pictures_show_means_and_say_so(name: str) -> None:
    model = constant(name)
    with torch.no_grad():
        shown = model.pictures(None, None, Noise(0, "sample", torch.arange(8)))
    assert shown["samples"].of == "samples, unconditional, means of p(x | z)"
    for picture in shown.values():
        assert picture.images.float().mean() == 0
    assert model.samples_in_words({"decode": "sample"}, {}) == "samples, unconditional, draws of p(x | z)"


def test_a_draw_does_not_depend_on_the_batch() -> None:
    model = constant("vae-mlp")
    with torch.no_grad():
        together = model.sample(Noise(0, "sample", torch.arange(6)))
        alone = model.sample(Noise(0, "sample", torch.tensor([4])))
    assert together[4].equal(alone[0])
