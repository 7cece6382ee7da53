"""Conditions of the autoencoders and hierarchies: posterior, prior and decoder are all given them."""

from __future__ import annotations

import pytest
import torch

from tests.trainer.test_text import ENCODER, SPEC, batch
from trainer.condition_values import Tokens
from trainer.models.base import Model
from trainer.models.conditioned import WIDEST_PRIOR
from trainer.models.hvae import HvaeConfig
from trainer.models.ladder import LadderConfig
from trainer.models.vae import VaeConfig
from trainer.noise import Noise

CONDITIONS = {"caption": {"kind": "text", "encoder": ENCODER}, "label": {"kind": "class", "classes": 3}}
BERNOULLI = {"kind": "bernoulli"}
SMALL = {"kind": "mlp", "hidden": [16]}
STAGES = [{"width": 8, "latent": 2}, {"width": 12, "latent": 3}]
MODELS = {
    "vae": (VaeConfig, {"kind": "vae", "latent": 4, "encoder": SMALL, "decoder": SMALL}),
    "vae-maps": (
        VaeConfig,
        {
            "kind": "vae",
            "latent": {"channels": 2, "downsample": 2},
            "encoder": {"kind": "resnet", "channels": [4, 8], "blocks": 1},
            "decoder": {"kind": "resnet", "channels": [4, 8], "blocks": 1},
        },
    ),
    "hvae": (HvaeConfig, {"kind": "hvae", "latents": [4, 3, 2], "hidden": [8], "encoder": SMALL, "decoder": SMALL}),
    "ladder": (LadderConfig, {"kind": "ladder", "stages": STAGES}),
    "ladder-maps": (
        LadderConfig,
        {"kind": "ladder", "cells": {"kind": "vdvae"}, "stages": [STAGES[0], STAGES[1] | {"shrink": 2}]},
    ),
}


def built(name: str, spread: float = 0.2, **settings: object) -> Model:
    torch.manual_seed(0)
    kind, fields = MODELS[name]
    settings = {"conditions": CONDITIONS, "embedding": 8, "likelihood": BERNOULLI} | settings
    model = kind.model_validate(fields | settings).build(SPEC)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0, spread)
    return model.eval()


def conditions(n: int = 12) -> tuple[torch.Tensor, dict, Noise]:
    images, condition, noise = batch(n)
    return images, condition | {"label": torch.arange(n) % 3}, noise


def bound(model, images, condition, noise):
    return model(images, condition, noise, torch.tensor(0.0)).negative_bound


@pytest.mark.parametrize("name", MODELS)
def test_every_part_is_given_the_conditions(name):
    model = built(name)
    images, condition, noise = conditions()
    found = model(images, condition, noise, torch.tensor(0.0))
    without = model(images, None, noise, torch.tensor(0.0))
    assert (found.distortion != without.distortion).all()
    assert all((found.rates[level] != without.rates[level]).any() for level in found.rates)
    other = condition | {"label": (condition["label"] + 1) % 3}
    assert (bound(model, images, other, noise) != found.negative_bound).all()
    drawn = model.sample(Noise(0, "sample", torch.arange(12)), condition)
    assert (drawn != model.sample(Noise(0, "sample", torch.arange(12)), other)).any()
    assert drawn.shape == images.shape


@pytest.mark.parametrize("name", MODELS)
def test_unknown_conditions_are_those_left_out(name):
    model = built(name)
    images, condition, noise = conditions()
    nothing = {
        "caption": Tokens(condition["caption"].ids, torch.zeros(12, dtype=torch.int32)),
        "label": torch.full((12,), -1),
    }
    torch.testing.assert_close(bound(model, images, nothing, noise), bound(model, images, None, noise))


@pytest.mark.parametrize("name", MODELS)
def test_every_weight_learns(name):
    model = built(name)
    images, condition, _ = conditions()
    model(images, condition, Noise(0, "train", torch.arange(12), batch=12), torch.tensor(0.0)).loss.sum().backward()
    lacking = [name for name, value in model.named_parameters() if value.grad is None]
    assert not lacking


@pytest.mark.parametrize("name", MODELS)
def test_the_importance_weights_are_of_the_same_model_as_the_bound(name):
    """-log w of one draw has the bound as its mean: prior, posterior and decoder are given the same in both."""
    model = built(name, 0.1)
    images, condition, _ = conditions(4)
    with torch.no_grad():
        noises = [Noise(seed, "evaluate", torch.arange(4)) for seed in range(400)]
        bounds = torch.stack([bound(model, images, condition, noise) for noise in noises])
        weights = torch.stack([-model.log_weights(images, condition, noise, 1)[:, 0] for noise in noises])
    error = ((bounds.var(0) + weights.var(0)) / 400).sqrt()
    assert ((bounds.mean(0) - weights.mean(0)).abs() < 4 * error + 1e-4).all()


@pytest.mark.parametrize("name", MODELS)
def test_training_hides_conditions_by_their_probability(name):
    images, condition, _ = conditions()
    noise = Noise(0, "train", torch.arange(12), batch=12)
    hidden = built(name, condition_dropout=1.0)
    torch.testing.assert_close(bound(hidden, images, condition, noise), bound(built(name), images, None, noise))
    assert built(name, condition_dropout={"label": 0.5}).hidden_in_training == {"caption": 0.0, "label": 0.5}


def test_a_prior_starts_standard_and_its_scale_is_bounded():
    torch.manual_seed(0)
    model = VaeConfig.model_validate(MODELS["vae"][1] | {"conditions": CONDITIONS, "likelihood": BERNOULLI}).build(SPEC)
    _, condition, noise = conditions()
    like = torch.zeros(12, 4)
    p = model.prior(model.given(condition, noise), like)
    assert not p.mean.any()
    assert not p.log_scale.any()
    torch.nn.init.normal_(model.prior.head[-1].weight, 0, 100.0)
    assert model.prior(model.given(condition, noise), like).log_scale.abs().max() <= WIDEST_PRIOR


def test_without_conditions_there_are_no_weights_for_them():
    plain = VaeConfig.model_validate(MODELS["vae"][1] | {"likelihood": BERNOULLI}).build(SPEC)
    assert {name.split(".")[0] for name, _ in plain.named_parameters()} == {"encoder", "decoder"}
