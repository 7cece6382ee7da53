"""Noise schedules: ends, monotony, slopes, and a shape that learns to make the bound's variance small."""

import math

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from tests.trainer.gaussian_data import time_grid
from trainer.noise import Noise
from trainer.schedules import LearnedConfig, NoiseScheduleConfig

ALL_SCHEDULES = ["linear", "cosine", "learned"]


def built(kind: str, **settings):
    """A schedule in float64; the learned one bent at random."""
    schedule = TypeAdapter(NoiseScheduleConfig).validate_python({"kind": kind, **settings}).build().double()
    if kind == "learned":
        with torch.no_grad():
            schedule.logits.copy_(torch.randn(len(schedule.logits), generator=torch.Generator().manual_seed(1)))
    return schedule


@pytest.mark.parametrize("kind", ALL_SCHEDULES)
def test_gamma_rises_from_one_end_to_the_other(kind):
    t = torch.linspace(0, 1, 1001, dtype=torch.float64)
    gamma, slope = built(kind, gamma_0=-9.0, gamma_1=4.0)(t)
    torch.testing.assert_close(gamma[[0, -1]], torch.tensor([-9.0, 4.0], dtype=torch.float64))
    assert (gamma.diff() > 0).all()
    assert (slope > 0).all()


@pytest.mark.parametrize("kind", ALL_SCHEDULES)
def test_the_slope_is_the_derivative(kind):
    t = torch.linspace(0.0005, 0.9995, 500, dtype=torch.float64)
    schedule, h = built(kind), 1e-7
    _, slope = schedule(t)
    numeric = (schedule(t + h)[0] - schedule(t - h)[0]) / (2 * h)
    torch.testing.assert_close(slope, numeric, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ALL_SCHEDULES)
def test_ends_have_gradients_only_when_they_are_learned(kind):
    for learn in (False, True):
        gamma, slope = built(kind, learn_ends=learn)(torch.rand(8, dtype=torch.float64))
        assert gamma.requires_grad == slope.requires_grad == learn


def test_cosine_schedule_makes_alpha_a_cosine():
    schedule = built("cosine")
    gamma, _ = schedule(torch.linspace(0, 1, 9, dtype=torch.float64))
    angles = torch.arccos(torch.sigmoid(-gamma).sqrt())
    torch.testing.assert_close(angles.diff(), angles.diff().mean().expand(8))


def test_a_schedule_that_falls_is_refused_in_words():
    with pytest.raises(ValidationError, match=r"gamma_1 = -14\.0 must be above"):
        LearnedConfig(gamma_1=-14.0)


def loss_at(gamma, slope):
    """A diffusion loss that is spread unevenly over gamma."""
    return 0.5 * slope * (0.05 + torch.exp(-0.5 * (gamma + 4).square()))


def test_the_shapes_gradient_is_that_of_the_second_moment():
    """Against numerical differentiation of E[loss^2] by each of the shape's parameters."""
    schedule = built("learned", pieces=6, learn_ends=False)

    def second_moment():
        t, weights = time_grid(schedule, 40)
        return (loss_at(*schedule(t)).square() * weights).sum().item()

    t, weights = time_grid(schedule, 40)
    gamma, slope = schedule(t)
    (schedule.variance_objective(gamma, loss_at(gamma, slope)) * weights).sum().backward()
    for i in range(6):
        with torch.no_grad():
            schedule.logits[i] += 1e-4
            above = second_moment()
            schedule.logits[i] -= 2e-4
            below = second_moment()
            schedule.logits[i] += 1e-4
        assert schedule.logits.grad[i].item() == pytest.approx((above - below) / 2e-4, rel=1e-4, abs=1e-6)


def test_learning_the_shape_removes_variance_and_leaves_the_mean():
    schedule = LearnedConfig(learn_ends=False).build()
    optimizer = torch.optim.Adam(schedule.parameters(), lr=0.05)

    def moments():
        loss = loss_at(*schedule((torch.arange(10_000) + 0.5) / 10_000))
        return loss.mean().item(), loss.std().item()

    mean, spread = moments()
    for step in range(400):
        noise = Noise(0, "train", torch.arange(step * 64, (step + 1) * 64), batch=64)
        gamma, slope = schedule(noise.stratified("t"))
        optimizer.zero_grad()
        objective = schedule.variance_objective(gamma, loss_at(gamma, slope))
        assert (objective == 0).all()  # it only has a gradient
        objective.mean().backward()
        optimizer.step()
    learned_mean, learned_spread = moments()
    assert learned_mean == pytest.approx(mean, rel=2e-3)
    assert learned_spread < spread / 4
    assert math.isfinite(learned_spread)
