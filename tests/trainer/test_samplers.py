"""Samplers against Gaussian data, whose flow and whose chain are known exactly; float64."""

import itertools
import math

import pytest
import torch

from tests.trainer.gaussian_data import Optimal, flow
from trainer.noise import Noise
from trainer.samplers import SAMPLERS, noise_levels
from trainer.schedules import LinearConfig

ORDERS = {"ddim": 1, "heun": 2, "dpm_solver": 2}  # of the solvers of the flow; the ancestral sampler is random
ALL_SAMPLERS = [*ORDERS, "ancestral"]
SPACINGS = ["time", "log_snr", "karras"]
MEAN, VARIANCE = torch.tensor([0.3, -1.0]).double(), torch.tensor([0.25, 0.01]).double()


def last(sampler, denoise, z, gammas, noise=None, temperature=1.0):
    *_, step = SAMPLERS[sampler](denoise, z, gammas, noise, temperature)
    return step.z


def test_every_sampler_is_in_the_list():
    assert sorted(ALL_SAMPLERS) == sorted(SAMPLERS)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("sampler", ORDERS)
def test_solvers_converge_to_the_exact_flow_at_their_order(sampler, spacing):
    schedule = LinearConfig(gamma_0=-6, gamma_1=5).build()
    z = torch.tensor([[1.3, 0.2], [-0.4, -2.0]]).double()
    errors = []
    for steps in (64, 128, 256):
        gammas = noise_levels(schedule, steps, spacing, torch.float64)
        exact = flow(z, gammas[0], gammas[-1], MEAN, VARIANCE)
        errors.append((last(sampler, Optimal(MEAN, VARIANCE), z, gammas) - exact).abs().max().item())
    for coarse, fine in itertools.pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(ORDERS[sampler], abs=0.25)


class Columns:
    """Noise whose n-th draw is 1 for image n and 0 for the others: shows what each draw does to a linear sampler."""

    def __init__(self, images: int):
        self.images, self.calls = images, 0

    def normal(self, name, shape):
        column = torch.zeros(self.images, *shape, dtype=torch.float64)
        column[self.calls] = 1
        self.calls += 1
        return column


@pytest.mark.parametrize(("steps", "variance"), [(10, 0.114599), (100, 0.228462), (1000, 0.247730)])
def test_ancestral_samples_of_gaussian_data_have_the_exact_variance(steps, variance):
    """Linear gamma -13.3..5, x ~ N(0, .25). The sampler is linear in its noise: the squares of its columns add up."""

    gammas, columns = noise_levels(LinearConfig().build(), steps, "time", torch.float64), Columns(steps + 1)
    z = last("ancestral", Optimal(0.0, 0.25), columns.normal("z1", (1,)), gammas, columns)
    total = z.square().sum().item()
    assert total == pytest.approx(variance, abs=1e-6)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_noise_levels_fall_from_end_to_end(spacing):
    schedule = LinearConfig(gamma_0=-9, gamma_1=4).build()
    gammas = noise_levels(schedule, 20, spacing, torch.float64)
    assert len(gammas) == 21
    assert (gammas.diff() < 0).all()
    torch.testing.assert_close(gammas[[0, -1]], torch.tensor([4.0, -9.0]).double())


@pytest.mark.parametrize("sampler", ALL_SAMPLERS)
def test_a_sample_belongs_to_its_position_not_to_its_batch(sampler):
    gammas = noise_levels(LinearConfig(gamma_0=-6).build(), 8, "time", torch.float64)

    def sample(positions):
        noise = Noise(3, "sample", torch.tensor(positions), dtype=torch.float64)
        return last(sampler, Optimal(MEAN, VARIANCE), noise.normal("z1", (2,)), gammas, noise)

    torch.testing.assert_close(sample([0, 1, 2, 3])[2:], sample([2, 3]), atol=0, rtol=0)


@pytest.mark.parametrize("sampler", ALL_SAMPLERS)
def test_temperature_zero_gives_the_mean(sampler):
    gammas = noise_levels(LinearConfig().build(), 100, "time", torch.float64)
    noise = Noise(3, "sample", torch.arange(4), dtype=torch.float64)
    z = last(sampler, Optimal(MEAN, VARIANCE), torch.zeros(4, 2).double(), gammas, noise, 0.0)
    assert (z - z[0]).abs().max() == 0
    torch.testing.assert_close(z[0], MEAN, atol=0.15, rtol=0)
