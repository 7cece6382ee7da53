"""The mixture of discretised logistics with coupled colours."""

import itertools
import math

import pytest
import torch

from trainer.images import ImageSpec
from trainer.likelihoods.discretised import DiscretisedLogistic
from trainer.likelihoods.mixture import LogisticMixture
from trainer.noise import Noise


def random_output(likelihood, spec, n=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, likelihood.outputs, spec.height, spec.width, generator=generator, dtype=torch.float64)


def every_pixel(spec):
    """All L^C values of a pixel, as images of one pixel."""
    values = list(itertools.product(range(spec.levels), repeat=spec.channels))
    return torch.tensor(values, dtype=torch.uint8)[:, :, None, None]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("channels", "levels", "components"), [(1, 256, 1), (1, 17, 5), (2, 9, 3), (3, 7, 4), (4, 3, 2)]
)
def test_probabilities_of_all_colours_sum_to_one(channels, levels, components, seed):
    spec = ImageSpec(channels, 1, 1, levels)
    likelihood = LogisticMixture(spec, components)
    pixels = every_pixel(spec)
    output = 2 * random_output(likelihood, spec, seed=seed).expand(len(pixels), -1, -1, -1)
    assert likelihood.log_prob(output, pixels).exp().sum().item() == pytest.approx(1, abs=1e-10)


def test_one_uncoupled_component_is_the_discretised_logistic():
    spec = ImageSpec(3, 4, 5, 256)
    mixture, logistic = LogisticMixture(spec, 1), DiscretisedLogistic(spec)
    output = random_output(mixture, spec, n=2)
    output[:, 7:] = 0
    levels = torch.randint(0, 256, (2, *spec.shape), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    torch.testing.assert_close(mixture.log_prob(output, levels), logistic.log_prob(output[:, 1:7], levels))


def test_colour_is_ten_numbers_a_component():
    assert LogisticMixture(ImageSpec(3, 1, 1), 10).outputs == 100


def test_a_channel_follows_those_before_it():
    """With a coupling of almost 1 and narrow scales green is likely where it equals red, wherever red is."""
    spec = ImageSpec(2, 1, 1, 256)
    likelihood = LogisticMixture(spec, 1)
    output = torch.zeros(1, 6, 1, 1, dtype=torch.float64)
    output[:, 4] = -3.0  # log-scale of the second channel
    output[:, 5] = 10.0  # tanh: 1
    for red in (20, 128, 240):
        pixels = torch.tensor([[red, green] for green in range(256)], dtype=torch.uint8)[:, :, None, None]
        log_probs = likelihood.log_prob(output.expand(256, -1, -1, -1), pixels)
        assert log_probs.argmax().item() == red


def test_samples_have_the_probabilities():
    spec = ImageSpec(3, 1, 1, 3)
    likelihood = LogisticMixture(spec, 3)
    pixels, n = every_pixel(spec), 40_000
    output = random_output(likelihood, spec, seed=5)
    expected = likelihood.log_prob(output.expand(len(pixels), -1, -1, -1), pixels).exp()
    noise = Noise(0, "sample", torch.arange(n), dtype=torch.float64)
    drawn = likelihood.sample(output.expand(n, -1, -1, -1), noise)[:, :, 0, 0].long()
    counts = torch.bincount(drawn[:, 0] * 9 + drawn[:, 1] * 3 + drawn[:, 2], minlength=27)
    chi_squared = ((counts - n * expected) ** 2 / (n * expected)).sum().item()
    assert chi_squared < 26 + 5 * math.sqrt(2 * 26)  # 26 degrees of freedom


def test_the_mean_is_a_colour_of_the_likeliest_component():
    spec = ImageSpec(1, 1, 1, 256)
    likelihood = LogisticMixture(spec, 2)
    #  weight, mean, log-scale of each component
    output = torch.tensor([1.0, -0.5, 0.0, 0.0, 0.5, 0.0]).reshape(1, 6, 1, 1)
    assert likelihood.mean(output).item() == spec.nearest_cell(torch.tensor(-0.5)).item()
