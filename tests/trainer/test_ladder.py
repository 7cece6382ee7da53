"""The top-down hierarchy: its exact divergence, its levels, its walk, its shapes."""

import math

import pytest
import torch
from pydantic import ValidationError

from trainer.images import ImageSpec
from trainer.models.ladder import LadderConfig
from trainer.models.ladder.group import residual_normal
from trainer.noise import Noise
from trainer.normal import Normal

VECTORS = {"cells": {"kind": "mlp"}, "stages": [{"width": 16, "latent": 3, "repeat": 3}]}
MAPS = [
    {"width": 8, "groups": 2, "latent": 2},
    {"shrink": 2, "width": 12, "latent": 2, "repeat": 2},
    {"shrink": 3, "width": 12, "latent": 4, "cells_up": 2, "cells_down": 2},
]
VDVAE = {"cells": {"kind": "vdvae"}, "stages": MAPS}
NVAE = {"cells": {"kind": "nvae", "expansion": 2}, "stages": MAPS}
SPEC = ImageSpec(1, 6, 6, 17)


def ladder(config, spec=SPEC, seed=0, lively=False, **others):
    """A ladder in float64; `lively`: with heads that are not zero, as after some training."""
    torch.manual_seed(seed)
    model = LadderConfig(kind="ladder", **config, **others).build(spec).double()
    if lively:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def setting(n=4, spec=SPEC, purpose="evaluate"):
    images = torch.randint(0, spec.levels, (n, *spec.shape), generator=torch.Generator().manual_seed(1))
    return images.to(torch.uint8), None, Noise(0, purpose, torch.arange(n), batch=n, dtype=torch.float64)


START = torch.tensor(0.0)


def test_residual_normal_has_the_exact_divergence():
    value = lambda x: torch.full((1, 1), x, dtype=torch.float64)  # noqa: E731
    p = Normal(value(0.3), value(-0.2))
    through_the_bound = 5 * math.atanh(-0.7 / 5)
    q = residual_normal(p, value(0.5), value(through_the_bound))
    assert q.kl(p).item() == pytest.approx(0.509776569, abs=1e-9)


@pytest.mark.parametrize("extreme", [-1e30, 1e30])
def test_no_output_of_a_network_makes_a_divergence_overflow(extreme):
    model = ladder(VDVAE)
    with torch.no_grad():
        for group in (group for stage in model.down for group in stage.groups):
            for head in (group.prior_head, group.posterior_head):
                head[-1].bias[2:4] = extreme  # log-scales
    for rate in model(*setting(), START).rates.values():
        assert rate.isfinite().all()


@pytest.mark.parametrize("config", [VECTORS, VDVAE, NVAE], ids=["mlp", "vdvae", "nvae"])
def test_rates_are_zero_at_the_start_and_never_negative(config):
    fresh = ladder(config)(*setting(), START).rates
    lively = ladder(config, lively=True)(*setting(), START).rates
    for level in range(1, len(fresh) + 1):
        assert (fresh[f"z{level}"] == 0).all()
        assert (lively[f"z{level}"] > 0).all()


@pytest.mark.parametrize("config", [VECTORS, VDVAE], ids=["mlp", "vdvae"])
def test_log_weights_average_to_the_bound(config):
    """Over the same draws distortions agree, and each sampled ratio is unbiased for its divergence."""
    model, (images, condition, noise) = ladder(config, lively=True), setting(4000)
    images = images[:1].expand_as(images)
    with torch.no_grad():
        weights = model.log_weights(images, condition, noise, 1)[:, 0]
        bound = -model(images, condition, noise, START).negative_bound
    gap = weights - bound
    assert gap.std() > 0.01
    assert gap.mean().abs() < 5 * gap.std() / math.sqrt(len(gap))


def test_levels_are_numbered_from_the_image_up():
    model = ladder(VDVAE)
    assert model.levels == 5
    assert model.shapes == [(2, 6, 6), (2, 6, 6), (2, 3, 3), (2, 3, 3), (4, 1, 1)]
    assert list(model(*setting(), START).rates) == ["z1", "z2", "z3", "z4", "z5"]


@pytest.mark.parametrize(("height", "width"), [(28, 28), (7, 5), (9, 16)])
def test_any_shape_of_image_is_halved_and_restored(height, width):
    spec = ImageSpec(3, height, width, 256)
    model = ladder(
        {"cells": {"kind": "nvae"}, "stages": [{"width": 4, "groups": 0}] + [{"shrink": 2, "width": 4}] * 2}, spec
    )
    assert model.sample(setting(2, spec)[2]).shape == (2, 3, height, width)
    assert model(*setting(2, spec), START).negative_bound.isfinite().all()


def test_the_top_prior_is_standard_if_asked_for():
    standard, learned = (ladder(VDVAE, lively=True, top_prior=kind) for kind in ("standard", "learned"))
    noise = setting()[2]
    for model, is_standard in ((standard, True), (learned, False)):
        _, draws = model.walk(lambda level, m=model: noise.normal(str(level), m.shapes[level - 1]), noise)
        assert bool((draws[0].p.mean == 0).all() and (draws[0].p.log_scale == 0).all()) is is_standard
        assert not (draws[1].p.mean == 0).all()


@pytest.mark.parametrize("config", [VECTORS, VDVAE, NVAE], ids=["mlp", "vdvae", "nvae"])
def test_gradients_are_the_same_when_features_are_computed_again(config):
    gradients = []
    for again in (False, True):
        model = ladder(config, lively=True, checkpoint_gradients=again)
        model(*setting(purpose="train"), START).loss.mean().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for kept, computed in zip(*gradients, strict=True):
        assert torch.equal(kept, computed)


def test_posterior_does_not_see_the_levels_below():
    """Of two draws that differ below level 3 alone, the upper rates are the same."""
    model, (images, condition, noise) = ladder(VECTORS, lively=True), setting()
    features = model.encode(images, noise)
    other = noise.with_draw(1, 2)
    eps = lambda level: (noise if level == 3 else other).normal(f"z{level}", model.shapes[level - 1])  # noqa: E731
    _, draws = model.walk(eps, noise, features=features)
    rates = model(images, condition, noise, START).rates
    torch.testing.assert_close(draws[0].q.kl(draws[0].p), rates["z3"])
    torch.testing.assert_close(draws[1].q.kl(draws[1].p), rates["z2"])  # q(z_2 | z_3, x): the draw of z_3 is the same
    assert not torch.allclose(draws[2].q.kl(draws[2].p), rates["z1"])


def test_samples_share_the_upper_levels_asked_for():
    model = ladder(VDVAE, ImageSpec(1, 6, 6, 256), lively=True)
    noise = setting(6)[2]
    pictures = [model.sample(noise, shared_levels=k, decode="mean") for k in range(model.levels + 1)]
    assert [len(picture.unique(dim=0)) for picture in pictures] == [6] * model.levels + [1]
    assert all(torch.equal(picture[0], pictures[0][0]) for picture in pictures)


def test_reconstruction_from_all_levels_is_the_whole_one():
    model, setup = ladder(VDVAE, ImageSpec(1, 6, 6, 256), lively=True), setting(4, ImageSpec(1, 6, 6, 256))
    whole = model.reconstruct(*setup)
    assert torch.equal(model.reconstruct(*setup, levels=model.levels), whole)
    assert not torch.equal(model.reconstruct(*setup, levels=model.levels - 1), whole)


def test_temperature_zero_gives_one_picture():
    model = ladder(VECTORS, lively=True)
    assert len(model.sample(setting(5)[2], temperature=0.0, decode="mean").unique(dim=0)) == 1


class TestObjective:
    """What is descended while the rates warm up; the bound reported never changes."""

    def elbo(self, progress, **others):
        model = ladder(VECTORS, lively=True, **others)
        elbo = model(*setting(), torch.tensor(progress))
        torch.testing.assert_close(elbo.negative_bound, elbo.distortion + sum(elbo.rates.values()))
        return elbo

    @pytest.mark.parametrize(("progress", "weight"), [(0.0, 0.0), (250.0, 0.25), (1000.0, 1.0), (1e9, 1.0)])
    def test_rates_warm_up_with_the_images_seen(self, progress, weight):
        elbo = self.elbo(progress, kl_warmup=1000)
        torch.testing.assert_close(elbo.loss, elbo.distortion + weight * sum(elbo.rates.values()))

    def test_free_bits_are_counted_per_image_and_level(self):
        elbo = self.elbo(0.0, free_bits=0.3)
        spent = torch.stack(list(elbo.rates.values()))
        assert 0 < (spent < 0.3).sum() < spent.numel()  # some are under, some over
        torch.testing.assert_close(elbo.loss, elbo.distortion + torch.where(spent < 0.3, 0.3, spent).sum(0))

    def test_balance_weighs_what_spends_more_for_its_size(self):
        elbo = self.elbo(500.0, kl_warmup=1000, balance=True)
        spent = torch.stack(list(elbo.rates.values()))
        weights = (spent + 0.01) / (spent + 0.01).mean(0)  # groups of one size
        torch.testing.assert_close(elbo.loss, elbo.distortion + 0.5 * (weights * spent).sum(0))

    def test_balance_ends_with_the_warm_up(self):
        elbo = self.elbo(1000.0, kl_warmup=1000, balance=True)
        torch.testing.assert_close(elbo.loss, elbo.negative_bound)


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"stages": [{"width": 4}, {"width": 4, "groups": 0}]}, "at the top, has no groups"),
        ({"stages": [{"width": 4, "shrink": 2}], "cells": {"kind": "vdvae"}}, "image's own resolution"),
        ({"stages": [{"width": 4}, {"width": 4, "shrink": 2}]}, "shrink is for maps"),
        ({"balance": True}, "give kl_warmup"),
    ],
)
def test_a_ladder_that_cannot_be_is_refused(config, complaint):
    with pytest.raises(ValidationError, match=complaint):
        LadderConfig(kind="ladder", **config)
