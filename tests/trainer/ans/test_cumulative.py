"""Integer distributions: they share all slots, leave nothing empty, and find every slot's symbol again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.models import BINARY, COLOUR, GREY
from trainer.ans.cumulative import TOTAL, Cells, Cumulative, MixtureCells, Table, parameters
from trainer.ans.tails import LOGISTIC, NORMAL
from trainer.errors import TrainingError
from trainer.images import ImageSpec
from trainer.likelihoods.bernoulli import BernoulliConfig
from trainer.likelihoods.discretised import DiscretisedGaussianConfig, DiscretisedLogisticConfig
from trainer.likelihoods.gaussian import GaussianConfig
from trainer.likelihoods.mixture import LogisticMixtureConfig
from trainer.noise import Noise

LIKELIHOODS = [
    (BINARY, BernoulliConfig()),
    (GREY, DiscretisedLogisticConfig()),
    (COLOUR, DiscretisedLogisticConfig()),
    (COLOUR, DiscretisedGaussianConfig()),
    (BINARY, DiscretisedGaussianConfig()),
    (COLOUR, LogisticMixtureConfig(kind="logistic_mixture", components=3)),
    (GREY, LogisticMixtureConfig(kind="logistic_mixture", components=2)),
]


def edges(distribution: Cumulative) -> np.ndarray:
    """F(0) .. F(K) of every symbol, [K + 1, B, n]."""
    return np.stack([distribution.at(np.full(distribution.shape, k)) for k in range(distribution.size + 1)])


def check(distribution: Cumulative, least: int) -> None:
    found = edges(distribution)
    assert (found[0] == 0).all()
    assert (found[-1] == TOTAL).all()
    assert np.diff(found, axis=0).min() >= least


@pytest.mark.parametrize(("spec", "config"), LIKELIHOODS, ids=lambda part: getattr(part, "kind", None))
@pytest.mark.parametrize("spread", [0.1, 3.0, 40.0])
def test_a_likelihood_sums_to_one_in_integers_and_is_the_one_of_the_bound(spec: ImageSpec, config, spread):
    likelihood = config.build(spec)
    generator = torch.Generator().manual_seed(1)
    output = spread * torch.randn(2, likelihood.outputs, spec.height, spec.width, generator=generator)
    images = likelihood.sample(output, Noise(0, "sample", torch.arange(2)))
    bits = np.zeros(2)
    for channels in likelihood.coded_channels:
        distribution = likelihood.cumulative(output, images, channels)
        check(distribution, 1)
        size = distribution.interval(images[:, channels].flatten(1).long().numpy()).size
        bits += (32 - np.log2(size)).sum(1)
        later = images.clone()
        later[:, channels.start :] = 0  # a decoder does not know them yet
        again = likelihood.cumulative(output, later, channels)
        assert (edges(again) == edges(distribution)).all()
    expected = -likelihood.log_prob(output, images).double().numpy() / np.log(2)
    assert bits == pytest.approx(expected, rel=2e-4, abs=1e-3)


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from([NORMAL, LOGISTIC]),
    st.integers(2, 3000),
    st.floats(-30, 30),
    st.floats(-12, 8),
    st.sampled_from([0, 1]),
    st.integers(0, 2**32 - 1),
)
def test_cells_find_the_symbol_of_any_slot(tail, size, mean, log_scale, floor, slot):
    cells = Cells(tail, np.array([[mean]]), np.exp([[-log_scale]]), 4 / size, size, floor)
    check(cells, floor)
    symbol, interval = cells.find(np.array([[slot]]))
    assert (interval.start <= slot).all()
    assert (slot < interval.start + interval.size).all()
    assert (cells.interval(symbol).start == interval.start).all()


def test_a_mixture_and_a_table_find_every_symbol():
    generator = np.random.default_rng(0)
    means, scales = generator.normal(size=(3, 1, 40)), np.exp(generator.normal(size=(3, 1, 40)))
    weights = generator.dirichlet(np.ones(3), size=(1, 40)).transpose(2, 0, 1)
    table = Table.of(generator.dirichlet(np.full(17, 0.1), size=(1, 40)))
    for distribution in (MixtureCells(weights, means, scales, 2 / 17, 17), table):
        check(distribution, 1)
        for k in range(17):
            start, size = distribution.interval(np.full((1, 40), k))
            for slot in (start, start + size - 1):
                assert (distribution.find(slot)[0] == k).all()


@pytest.mark.parametrize("tail", [NORMAL, LOGISTIC], ids=["normal", "logistic"])
def test_tails_are_those_of_the_distributions_and_fall(tail):
    x = np.linspace(0, 30, 100_001)
    exact = torch.special.ndtr(-torch.from_numpy(x)) if tail is NORMAL else torch.sigmoid(-torch.from_numpy(x))
    assert np.abs(tail(x) - exact.numpy()).max() < 1e-10
    assert np.diff(tail(x)).max() <= 0
    assert tail(np.zeros(1)) == 0.5


def test_tails_have_the_same_bits_in_every_place_of_every_array():
    x = np.random.default_rng(0).exponential(4, size=1001)
    whole = NORMAL(x)
    assert all(NORMAL(x[i : i + 1])[0] == whole[i] for i in range(0, 1001, 50))
    assert (NORMAL(x[1::3]) == whole[1::3]).all()


def test_a_density_and_numbers_that_are_not_finite_are_refused():
    likelihood = GaussianConfig().build(GREY)
    with pytest.raises(TrainingError, match="density"):
        likelihood.cumulative(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8), slice(0, 1))
    with pytest.raises(TrainingError, match="not finite"):
        parameters(torch.tensor([[float("nan")]]))
