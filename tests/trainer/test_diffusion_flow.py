"""The probability-flow likelihood, where it is known."""

import itertools
import math

import pytest
import torch

from tests.trainer.gaussian_data import Optimal, flow
from trainer.gaussian_process import alpha
from trainer.images import ImageSpec
from trainer.models.diffusion import DiffusionConfig
from trainer.models.diffusion.flow import flow_log_density
from trainer.noise import Noise


def test_it_converges_to_the_density_of_the_exact_flow_at_order_two():
    """N(0, I) at the noisy end, pulled back through the flow of Gaussian data: log N(z_1) + log |d z_1 / d y_0|."""
    mean, variance = torch.tensor([0.3, -1.0]).double(), torch.tensor([0.25, 0.04]).double()
    ends = torch.tensor([-8.0, 7.0], dtype=torch.float64)
    noise = Noise(0, "evaluate", torch.arange(3), dtype=torch.float64)
    y = torch.tensor([[0.1, -0.9], [1.0, -1.3], [-0.5, -0.7]], dtype=torch.float64)
    end = flow(y * alpha(ends[0]), ends[0], ends[1], mean, variance)
    stretch = alpha(ends[0]) * flow(torch.ones(2).double(), *ends, 0 * mean, variance)
    exact = torch.distributions.Normal(0.0, 1.0).log_prob(end).sum(1) + stretch.log().sum()
    errors = []
    for steps in (100, 200, 400):
        gammas = torch.linspace(-8, 7, steps + 1, dtype=torch.float64)
        errors.append((flow_log_density(Optimal(mean, variance), y, gammas, noise) - exact).abs().max().item())
    for coarse, fine in itertools.pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(2, abs=0.2)


def test_a_fair_coin_costs_one_bit_by_the_flow_too():
    """The flow of two levels under the exact denoiser, the one that an untrained `levels` prediction is."""
    denoiser = {"network": {"kind": "mlp", "width": 8, "depth": 1}}
    schedule = {"kind": "linear", "gamma_0": -4, "gamma_1": 9}
    config = DiffusionConfig(kind="diffusion", steps=200, schedule=schedule, denoiser=denoiser)
    model = config.build(ImageSpec(1, 1, 1, 2)).double()
    images = (torch.arange(100) % 2).to(torch.uint8).reshape(-1, 1, 1, 1)
    noise = Noise(0, "evaluate", torch.arange(100), dtype=torch.float64)
    with torch.no_grad():
        cost = model.flow_cost(images, None, noise)
    assert cost.mean().item() == pytest.approx(math.log(2), abs=5e-3)
    assert cost.std().item() < 0.02  # p(x | z_0) p(z_0) / q(z_0 | x) is p(x) at every z_0
