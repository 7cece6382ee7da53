"""Guidance against values computed by hand: scale, interval of noise levels, rescale, negative conditions."""

import math

import pytest
import torch
from pydantic import ValidationError

from tests.trainer.test_text import batch, built
from trainer.noise import Noise
from trainer.samplers import SamplingConfig
from trainer.samplers.base import Denoised
from trainer.samplers.guidance import guided

Z = torch.zeros(1, 2, dtype=torch.float64)
CALLS = []


def estimates(name, x, eps):
    def denoise(z, gamma):
        CALLS.append(name)
        return Denoised(*(torch.tensor([values], dtype=torch.float64) for values in (x, eps)))

    return denoise


CONDITIONAL = estimates("conditional", [1.0, 3.0], [0.5, -0.5])
OTHER = estimates("other", [2.0, 2.0], [0.0, 1.0])


def at(level, **settings):
    """The guided estimates at a noise level sigma / alpha, and whose estimates were computed."""
    CALLS.clear()
    found = guided(CONDITIONAL, OTHER, **settings)(Z, torch.tensor(2 * math.log(level), dtype=torch.float64))
    return [value[0].tolist() for value in found], sorted(CALLS)


@pytest.mark.parametrize(
    ("scale", "x", "eps", "computed"),
    [
        (0.0, [2, 2], [0, 1], ["other"]),
        (1.0, [1, 3], [0.5, -0.5], ["conditional"]),
        (3.0, [-1, 5], [1.5, -3.5], ["conditional", "other"]),  # 2 + 3 (1 - 2), 2 + 3 (3 - 2), ...
    ],
)
def test_guidance_extrapolates_from_the_other_estimate(scale, x, eps, computed):
    assert at(1.0, scale=scale) == ([x, eps], computed)


@pytest.mark.parametrize(
    ("level", "interval", "inside"),
    [
        (0.5, (0.4, 2.0), True),
        (0.3, (0.4, 2.0), False),
        (2.1, (0.4, 2.0), False),
        (99.0, (0.4, None), True),
        (0.01, (0.0, 2.0), True),
    ],
)
def test_outside_its_interval_guidance_neither_changes_nor_costs_anything(level, interval, inside):
    guided_values, plain = ([[-1, 5], [1.5, -3.5]], ["conditional", "other"]), ([[1, 3], [0.5, -0.5]], ["conditional"])
    assert at(level, scale=3.0, interval=interval) == (guided_values if inside else plain)


def test_rescale_restores_the_deviation_of_the_conditional_estimate():
    """At scale 3 x is (-1, 5) with deviation 3, the conditional x (1, 3) has 1: the factor is 1 - phi 2/3."""
    for phi, factor in ((1.0, 1 / 3), (0.6, 0.6)):
        (x, eps), _ = at(0.5, scale=3.0, rescale=phi)
        assert x == pytest.approx([-factor, 5 * factor])
        # the same z = alpha x + sigma eps: eps changes by alpha / sigma = 2 times what x loses
        assert eps == pytest.approx([1.5 + 2 * (factor - 1), -3.5 + 2 * 5 * (1 - factor)])


def test_the_rescale_of_a_constant_image_is_finite():
    flat = estimates("flat", [1.0, 1.0], [0.0, 0.0])
    found = guided(flat, flat, 2.0, rescale=0.7)(Z, torch.zeros((), dtype=torch.float64))
    assert found.x.tolist() == [[1, 1]]


def test_a_negative_caption_takes_the_place_of_the_unconditional_estimate():
    model = built()
    _, condition, _ = batch()
    caption = condition["caption"]
    negative = {"caption": type(caption)(caption.ids.flip(0), caption.lengths.flip(0))}
    noise = Noise(0, "sample", torch.arange(12))

    def last(given, **options):
        *_, step = model.diffuser.trajectory(noise, given, 1.0, SamplingConfig(steps=2, **options.pop("of")), **options)
        return step.z

    unguided = {"guidance": 0.0}
    torch.testing.assert_close(last(condition, of=unguided, negative=negative), last(negative, of={}))
    torch.testing.assert_close(last(condition, of=unguided), last(None, of={}))
    assert not torch.allclose(
        last(condition, of={"guidance": 3.0}, negative=negative), last(condition, of={"guidance": 3.0})
    )


def test_an_interval_must_not_be_empty():
    with pytest.raises(ValidationError, match=r"guidance_to: 0\.2 is not above guidance_from, 0\.5"):
        SamplingConfig(guidance_from=0.5, guidance_to=0.2)
