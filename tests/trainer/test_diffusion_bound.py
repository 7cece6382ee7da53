"""The terms of the diffusion bound against values that are known exactly, for the production code in float64."""

import math

import numpy as np
import pytest
import torch

from tests.trainer.gaussian_data import FixedNoise, Optimal, normal_grid, time_grid
from trainer.gaussian_process import diffuse, posterior
from trainer.images import ImageSpec
from trainer.models.diffusion import DiffusionConfig
from trainer.models.diffusion.diffuser import Diffuser, DiffuserConfig
from trainer.models.diffusion.predictions import GaussianMixtureConfig, LevelsConfig, PlainConfig
from trainer.models.diffusion.reconstruction import level_costs, level_log_prob
from trainer.noise import Noise

SCHEDULES = [
    {"kind": "linear"},
    {"kind": "cosine"},
    {"kind": "learned", "pieces": 7},
]
ONE_PIXEL = ImageSpec(1, 1, 1, levels=2)


def bent(module):
    """The module in float64, a learned schedule among its parts bent out of a line."""
    for name, parameter in module.named_parameters():
        if name.endswith("logits"):
            with torch.no_grad():
                parameter.copy_(torch.linspace(-1, 1.5, len(parameter)).sin() * 2)
    return module.double()


def gaussian_rates(schedule: dict, steps: int | None = None):
    """The production terms for x ~ N(.3, .25) with the optimal denoiser, integrated over x, eps and t."""
    diffuser = bent(
        Diffuser(DiffuserConfig(schedule=schedule, steps=steps, denoiser=MLP), (1, 1, 1), ImageSpec(1, 1, 1))
    )
    diffuser.denoiser = Optimal(0.3, 0.25)
    nodes, weights = (torch.from_numpy(values) for values in np.polynomial.hermite_e.hermegauss(4))
    if steps:
        times = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps, torch.full((steps,), 1 / steps).double()
    else:
        times = time_grid(diffuser.schedule, 300)
    x, eps, t = torch.cartesian_prod(nodes, nodes, times[0]).T
    weights = torch.cartesian_prod(weights / weights.sum(), weights / weights.sum(), times[1]).prod(1)
    rates = diffuser((0.3 + 0.5 * x).reshape(-1, 1, 1, 1), None, FixedNoise(eps=eps, t=t))
    return (rates.prior * weights).sum().item(), (rates.diffusion * weights).sum().item()


MLP = {"network": {"kind": "mlp", "width": 8, "depth": 1}, "prediction": {"kind": "eps"}}


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s["kind"])
def test_gaussian_data_with_the_optimal_denoiser_has_the_exact_bound_whatever_the_schedule(schedule):
    prior, diffusion = gaussian_rates(schedule)
    assert prior == pytest.approx(0.001149033, abs=1e-8)
    assert diffusion == pytest.approx(5.956014634, abs=3e-7)


def test_discrete_time_converges_to_the_continuous_bound_from_above():
    gaps = [gaussian_rates({"kind": "linear"}, steps)[1] - 5.956014634 for steps in (25, 50, 100, 400)]
    assert all(gap > 0 for gap in gaps)
    assert gaps[0] / gaps[1] == pytest.approx(2, abs=0.3)  # the gap is of order 1 / T
    assert gaps[2] / gaps[3] == pytest.approx(4, abs=0.3)


def test_a_fair_coin_costs_one_bit():
    """x = +-1 with the exact denoiser tanh(alpha z / sigma^2): an untrained `levels` prediction is that denoiser."""
    config = DiffusionConfig(
        kind="diffusion",
        schedule={"kind": "linear", "gamma_0": -4, "gamma_1": 6},
        denoiser={**MLP, "prediction": {"kind": "levels"}},
    )
    model = config.build(ONE_PIXEL).double()
    eps, weights = normal_grid(400)
    nodes, times_weights = time_grid(model.diffuser.schedule, 60)
    points = torch.cartesian_prod(eps, nodes)
    images = torch.ones(len(points), 1, 1, 1, dtype=torch.uint8)
    elbo = model(images, None, FixedNoise(eps=points[:, 0], t=points[:, 1]), torch.tensor(0.0))
    total = (elbo.negative_bound * torch.cartesian_prod(weights, times_weights).prod(1)).sum().item()
    assert total == pytest.approx(math.log(2), abs=1e-10)


@pytest.mark.parametrize(("level", "bits"), [(0, 0.005227), (1, 0.010453), (128, 0.010453), (255, 0.005227)])
def test_reconstruction_of_eight_bit_levels_has_the_exact_cost(level, bits):
    costs = level_costs(ImageSpec(1, 1, 1), torch.tensor(-13.3, dtype=torch.float64))
    assert costs[level].item() / math.log(2) == pytest.approx(bits, abs=1e-6)


@pytest.mark.parametrize("levels", [2, 3, 17])
@pytest.mark.parametrize("gamma_0", [-6.5, -2.0, 1.0])
def test_the_table_of_reconstruction_costs_is_the_mean_of_sampled_ones(levels, gamma_0):
    spec, gamma = ImageSpec(1, 1, levels, levels), torch.tensor(gamma_0, dtype=torch.float64)
    images = torch.arange(levels, dtype=torch.uint8).expand(100_000 // levels, 1, 1, levels)
    noise = Noise(0, "evaluate", torch.arange(len(images)), dtype=torch.float64)
    y = spec.scaled(images, torch.float64) + math.exp(gamma_0 / 2) * noise.normal("z0", spec.shape)
    sampled = -level_log_prob(spec, images, y, gamma)
    error = 4 * sampled.std().item() / math.sqrt(len(images)) + 1e-9
    assert level_costs(spec, gamma).sum().item() == pytest.approx(sampled.mean().item(), abs=error)


def test_levels_far_from_the_ends_cost_as_much_as_the_middle_one_at_most():
    """Of 100 levels only some have a row of their own in the table; the rest must not come out below their cost."""
    gamma = torch.tensor(-3.0, dtype=torch.float64)
    spec = ImageSpec(1, 1, 100, 100)
    images = torch.arange(100, dtype=torch.uint8).expand(20_000, 1, 1, 100)
    noise = Noise(0, "evaluate", torch.arange(len(images)), dtype=torch.float64)
    y = spec.scaled(images, torch.float64) + math.exp(-1.5) * noise.normal("z0", spec.shape)
    values = spec.scaled(torch.arange(100), torch.float64)
    for level in (0, 20, 31, 35, 49, 50, 70, 99):
        logits = -0.5 * (y[:, 0, 0, level, None] - values).square() * math.exp(3.0)
        sampled = -logits.log_softmax(-1)[:, level]
        error = 4 * sampled.std().item() / math.sqrt(len(sampled))
        assert level_costs(spec, gamma)[level].item() > sampled.mean().item() - error
        if level < 32 or level in (49, 50, 99):
            assert level_costs(spec, gamma)[level].item() == pytest.approx(sampled.mean().item(), abs=error)


def test_four_predictions_give_one_loss_when_converted():
    """The same estimate told as x, eps, score and v."""
    z, gamma = torch.randn(64, 2, 3, 3, dtype=torch.float64), torch.linspace(-13, 5, 64, dtype=torch.float64)
    eps_guess = torch.randn_like(z)
    g = gamma.reshape(-1, 1, 1, 1)
    a, s = torch.sigmoid(-g).sqrt(), torch.sigmoid(g).sqrt()
    x_guess = (z - s * eps_guess) / a
    told = {"x0": x_guess, "eps": eps_guess, "score": -eps_guess / s, "v": a * eps_guess - s * x_guess}
    for kind, output in told.items():
        x, eps = PlainConfig(kind=kind).build(None)(output, z, gamma)
        torch.testing.assert_close(eps, eps_guess, atol=1e-9, rtol=1e-9)
        torch.testing.assert_close(x, x_guess, atol=1e-9, rtol=1e-9)
        torch.testing.assert_close(a * x + s * eps, z, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(
    "prediction", [LevelsConfig(kind="levels"), GaussianMixtureConfig(kind="mixture", components=3)]
)
def test_estimates_of_x_and_eps_make_up_z(prediction):
    kind = prediction.build(ImageSpec(2, 3, 3, 5))
    z, gamma = torch.randn(64, 2, 3, 3, dtype=torch.float64), torch.linspace(-13, 5, 64, dtype=torch.float64)
    output = torch.randn(64, 2 * kind.outputs_per_channel, 3, 3, dtype=torch.float64)
    x, eps = kind(output, z, gamma)
    torch.testing.assert_close(diffuse(x, eps, gamma), z)


def test_mixture_prediction_of_one_gaussian_is_the_optimal_denoiser_of_gaussian_data():
    z, gamma = torch.randn(64, 1, 2, 2, dtype=torch.float64), torch.linspace(-13, 5, 64, dtype=torch.float64)
    output = torch.zeros(64, 3, 2, 2, dtype=torch.float64)
    output[:, 1], output[:, 2] = 0.3, 6 * math.atanh(math.log(0.5) / 6)
    expected = Optimal(0.3, 0.25)(z, gamma)
    kind = GaussianMixtureConfig(kind="mixture", components=1).build(None)
    torch.testing.assert_close(kind(output, z, gamma), expected, check_stride=False)


def test_levels_prediction_is_bayes_rule():
    spec = ImageSpec(1, 1, 1, 5)
    prior = torch.tensor([0.1, 0.4, 0.2, 0.05, 0.25], dtype=torch.float64)
    z, gamma = torch.tensor([[[[0.37]]]], dtype=torch.float64), torch.tensor([-1.5], dtype=torch.float64)
    values = spec.scaled(torch.arange(5), torch.float64)
    a, variance = torch.sigmoid(-gamma).sqrt(), torch.sigmoid(gamma)
    joint = prior * torch.exp(-(0.37 - a * values).square() / (2 * variance))
    x, _ = LevelsConfig(kind="levels").build(spec)(prior.log().reshape(1, 5, 1, 1), z, gamma)
    assert x.item() == pytest.approx(((joint * values).sum() / joint.sum()).item(), abs=1e-12)


def test_the_reverse_step_is_the_conditional_of_the_joint():
    """q(z_s | z_t, x) q(z_t | x) = q(z_t | z_s) q(z_s | x): means and covariances of (z_s, z_t) agree."""
    gamma_s, gamma_t = torch.tensor(-1.2).double(), torch.tensor(0.9).double()
    alpha_s, alpha_t = torch.sigmoid(-gamma_s).sqrt(), torch.sigmoid(-gamma_t).sqrt()
    x = torch.tensor([[0.7]]).double()
    ratio = alpha_t / alpha_s
    slope = posterior(torch.ones(1, 1).double(), 0 * x, gamma_t, gamma_s)[0]
    mean, scale = posterior(alpha_t * x, x, gamma_t, gamma_s)
    torch.testing.assert_close(mean, alpha_s * x)
    torch.testing.assert_close(slope * torch.sigmoid(gamma_t), (ratio * torch.sigmoid(gamma_s)).reshape(1, 1))
    torch.testing.assert_close(scale.square() + slope.square() * torch.sigmoid(gamma_t), torch.sigmoid(gamma_s) + 0 * x)


def test_importance_weights_average_to_the_discrete_bound_and_close_on_the_evidence():
    config = DiffusionConfig(
        kind="diffusion",
        steps=5,
        schedule={"kind": "linear", "gamma_0": -4, "gamma_1": 4},
        denoiser={**MLP, "prediction": {"kind": "levels"}},
    )
    model = config.build(ONE_PIXEL).double()
    images = (torch.arange(5_000) % 2).to(torch.uint8).reshape(-1, 1, 1, 1)
    noise = Noise(0, "evaluate", torch.arange(len(images)), dtype=torch.float64)
    with torch.no_grad():
        weights = model.log_weights(images, None, noise, 8)
        bounds = [model(images, None, noise.with_draw(d, 5), torch.tensor(0.0)).negative_bound for d in range(5)]
    bound = torch.stack(bounds).mean(0)
    error = 4 * (weights[:, 0].std().item() + bound.std().item()) / math.sqrt(len(images))
    assert weights[:, 0].mean().item() == pytest.approx(-bound.mean().item(), abs=error)
    # at alpha_1 of 0.13 the prior and five coarse steps cost something; the weights of a fair coin lose it again
    importance = (weights.logsumexp(1) - math.log(8)).mean().item()
    assert weights.mean().item() < importance < -math.log(2) + 0.002
