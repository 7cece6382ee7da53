"""Conditions, their dropout and classifier-free guidance; weightings that never touch the bound."""

import pytest
import torch
from pydantic import ValidationError

from trainer.images import ImageSpec
from trainer.models.conditioned import dropped
from trainer.models.diffusion import DiffusionConfig
from trainer.noise import Noise

SPEC = ImageSpec(1, 4, 4, 3, classes=3)
WEIGHTINGS = ["bound", "simple", "min_snr", "sigmoid", "edm"]


def built(spec=SPEC, conditions=None, **settings):
    """A small model with weights that are nowhere zero."""
    torch.manual_seed(0)
    denoiser = {
        "network": {"kind": "mlp", "width": 16, "depth": 1},
        "embedding": 8,
        "conditions": {"label": {"kind": "class"}} if conditions is None else conditions,
    }
    model = DiffusionConfig(kind="diffusion", denoiser=denoiser, **settings).build(spec)
    for parameter in model.diffuser.denoiser.parameters():
        torch.nn.init.normal_(parameter, 0, 0.5)
    return model


def batch(purpose="train", n=64):
    images = torch.arange(n * 16).reshape(n, 1, 4, 4) % 3
    return images.to(torch.uint8), {"label": torch.arange(n) % 3}, Noise(0, purpose, torch.arange(n), batch=n)


def bound(model, images, condition, noise):
    return model(images, condition, noise, torch.tensor(0.0)).negative_bound


def test_conditions_are_hidden_from_their_share_of_training_images():
    images, condition, noise = batch()
    given = bound(built(), images, condition, noise)
    hidden = bound(built(), images, None, noise)
    mixed = bound(built(condition_dropout=0.4), images, condition, noise)
    drop = noise.uniform("condition") < 0.4
    assert 0 < drop.sum() < 64
    torch.testing.assert_close(mixed, torch.where(drop, hidden, given))


def test_conditions_are_never_hidden_in_evaluation():
    images, condition, noise = batch("evaluate")
    torch.testing.assert_close(
        bound(built(condition_dropout=0.9), images, condition, noise), bound(built(), images, condition, noise)
    )


def test_a_vector_is_a_condition_like_a_class():
    conditions = {"label": {"kind": "class"}, "caption": {"kind": "vector", "size": 5}}
    model = built(conditions=conditions)
    images, condition, noise = batch()
    caption = torch.randn(64, 5)
    both = bound(model, images, condition | {"caption": caption}, noise)
    only = bound(model, images, condition, noise)
    assert not torch.allclose(both, only)
    unknown = dropped(condition | {"caption": caption}, noise, 1.0)
    torch.testing.assert_close(bound(model, images, unknown, noise), bound(model, images, None, noise))


def test_classes_must_be_known():
    with pytest.raises(ValueError, match="the images have no classes"):
        built(SPEC._replace(classes=0))


def test_settings_of_a_sample_override_the_configuration_by_name():
    model = built(sampling={"steps": 3})
    noise = Noise(0, "sample", torch.arange(5))
    assert len(list(model.trajectory(noise))) == 4
    assert len(list(model.trajectory(noise, steps=7, sampler="ddim"))) == 8
    with pytest.raises(ValidationError, match="sampler"):
        model.sample(noise, sampler="euler")


@pytest.mark.parametrize("kind", WEIGHTINGS)
def test_a_weighting_is_descended_but_never_reported(kind):
    images, condition, noise = batch()
    plain, weighted = (
        built(weighting={"kind": name})(images, condition, noise, torch.tensor(0.0)) for name in ("bound", kind)
    )
    torch.testing.assert_close(weighted.negative_bound, plain.negative_bound)
    if kind == "bound":
        assert weighted.objective is None
    else:
        assert not torch.allclose(weighted.objective, plain.negative_bound)


def test_weightings_are_those_of_the_papers():
    gamma, slope = torch.tensor([-4.0, 0.0, 3.0]), torch.tensor([10.0, 20.0, 30.0])

    def weight(**settings):
        return DiffusionConfig(kind="diffusion", weighting=settings).weighting.weight(gamma, slope)

    snr = torch.exp(-gamma)
    torch.testing.assert_close(weight(kind="simple") * slope, torch.ones(3))
    torch.testing.assert_close(weight(kind="min_snr", limit=5.0) * slope * snr, snr.clamp(max=5))  # on x
    torch.testing.assert_close(weight(kind="sigmoid", shift=2.0), 1 / (1 + torch.exp(-(gamma + 2))))
    s = torch.exp(gamma / 2)
    of_x = (s**2 + 0.25) / (s * 0.5) ** 2  # EDM's lambda(sigma), table 1; |eps - eps'|^2 = |x - x'|^2 / sigma^2
    density = torch.exp(-((torch.log(s) + 1.2) ** 2) / (2 * 1.2**2))
    torch.testing.assert_close(weight(kind="edm"), density * of_x * s**2)


def test_ends_of_the_schedule_may_only_learn_from_the_bound():
    with pytest.raises(ValidationError, match=r"schedule\.learn_ends: needs weighting\.kind: bound, not simple"):
        DiffusionConfig(kind="diffusion", schedule={"kind": "learned"}, weighting={"kind": "simple"})
