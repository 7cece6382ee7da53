"""What a caption is worth, in a world where it is known: two fair coins, and a label that tells the first."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from datasets.loading.batches import Batch
from tests.trainer import models
from trainer.errors import TrainingError
from trainer.images import ImageSpec
from trainer.models.diffusion import DiffusionConfig
from trainer.noise import Noise
from trainer.training.condition_table import PartnerConditions, read_conditions
from trainer.training.evaluation import evaluate
from trainer.training.image_bounds import Estimate, bounds_of_images
from trainer.training.noise_levels import diffusion_by_level, velocity_error_by_level
from trainer.training.paired import paired_difference
from trainer.training.retrieval import bounds_in_groups, groups_of, retrieval

COINS = ImageSpec(1, 1, 2, 2, classes=2)
LOW, HIGH = -4.0, 10.0
GIVEN, NONE, SHUFFLED = ({"label": use} for use in ("given", "none", "shuffled"))


class ExactDenoiser(nn.Module):
    """The posterior mean of fair coins, the first of which the label tells; by the production code's prediction."""

    def __init__(self, denoiser, listens=True):
        super().__init__()
        self.conditioning, self.prediction, self.listens = denoiser.conditioning, denoiser.prediction, listens

    def forward(self, z, gamma, condition, noise):
        label = condition["label"] if condition and self.listens else torch.full((len(z),), -1)
        told = torch.where(label < 0, 0.0, 1e4 * (2 * label - 1))
        return self.prediction(torch.stack([told, 0 * told], -1)[:, None, None].to(z.dtype), z, gamma)


def coins(listens=True, **settings):
    """The exact model."""
    denoiser = {"network": {"kind": "mlp", "width": 8, "depth": 1}, "conditions": {"label": {"kind": "class"}}}
    schedule = {"kind": "linear", "gamma_0": LOW, "gamma_1": HIGH}
    model = DiffusionConfig(kind="diffusion", schedule=schedule, denoiser=denoiser, **settings).build(COINS)
    model.diffuser.denoiser = ExactDenoiser(model.diffuser.denoiser, listens)
    return model


def batches(n, size=None):
    """All outcomes equally often, `size` images at a time, with one of padding at the end."""
    number = torch.arange(n)
    images = torch.stack([number % 2, number // 2 % 2], 1).to(torch.uint8).reshape(n, 1, 1, 2)
    for start in range(0, n, size or n):
        rows = torch.arange(start, min(start + (size or n), n) + 1).clamp(max=n - 1)
        weights = torch.ones(len(rows))
        weights[-1] = 0
        positions = torch.where(weights > 0, rows, 0)
        yield Batch(images[rows], positions, weights, {"label": images[rows, 0, 0, 0].long()})


class EvenNoise(Noise):
    """eps and t at the middles of equally probable cells, so that the mean over the images is an integral."""

    def normal(self, name, shape):
        quantile = (self.positions // 4 % EPS + 0.5) / EPS
        return torch.special.ndtri(quantile.double()).reshape(-1, 1, 1, 1).expand(-1, *shape)

    def stratified(self, name):
        return (self.positions // 4 // EPS + 0.5).double() / TIMES


EPS, TIMES = 4000, 40


class EvenEstimate(Estimate):
    def noise(self, positions):
        return EvenNoise(0, "evaluate", positions, dtype=torch.float64)


def test_the_bound_with_a_caption_less_the_one_without_is_the_mutual_information():
    n = 4 * EPS * TIMES
    given, none = (bounds_of_images(coins(), batches(n, n // 8), EvenEstimate(0), uses, n) for uses in (GIVEN, NONE))
    found = paired_difference(given, none)
    assert found.images == n
    assert found.nats == pytest.approx(math.log(2), abs=1e-3)
    assert found.own == pytest.approx(math.log(2), abs=1e-3)
    assert found.other == pytest.approx(2 * math.log(2), abs=1e-3)


def test_by_random_noise_it_is_so_within_its_standard_error():
    n = 4096
    given, none = (bounds_of_images(coins(), batches(n), Estimate(0, draws=16), uses, n) for uses in (GIVEN, NONE))
    found = paired_difference(given, none)
    assert abs(found.nats - math.log(2)) < 3 * found.standard_error < 0.06
    assert found.standard_error < 0.7 * found.unpaired_error


def test_an_unconditional_model_gains_exactly_nothing():
    model, estimate, n = coins(listens=False), Estimate(0), 64
    given, none = (bounds_of_images(model, batches(n), estimate, uses, n) for uses in (GIVEN, NONE))
    found = paired_difference(given, none)
    assert (found.nats, found.standard_error) == (0, 0)
    assert found.unpaired_error > 0.01


def test_every_image_has_another_partner_whatever_the_batches():
    table = read_conditions(batches(1000, 70), ["label"])
    partners = PartnerConditions(table, seed=3)
    assert torch.equal(table.positions, torch.arange(1000))
    assert not (partners.partner == torch.arange(1000)).any()
    assert torch.equal(partners.partner.sort().values, torch.arange(1000))
    other = PartnerConditions(read_conditions(batches(1000, 333), ["label"]), seed=3)
    assert torch.equal(partners.partner, other.partner)
    assert not torch.equal(partners.partner, PartnerConditions(table, seed=4).partner)
    labels = table.values["label"]
    assert partners.same == (labels == labels[partners.partner]).sum()
    assert 400 < partners.same < 600


def test_one_image_has_no_partner():
    with pytest.raises(TrainingError, match="shuffled conditions: the set has 1 image, at least 2 are needed"):
        PartnerConditions(read_conditions(batches(1), ["label"]), seed=0)


def test_a_set_without_the_condition_is_refused():
    with pytest.raises(TrainingError, match="condition caption: the images have none; they have label"):
        read_conditions(batches(4), ["caption"])


def test_another_images_caption_costs_what_a_wrong_one_does_where_it_differs():
    """A coin with the wrong label: 1/2 |eps - eps'|^2 = 2 SNR, integrated over gamma."""
    model, n = coins(), 2000
    partners = PartnerConditions(read_conditions(batches(n), ["label"]), seed=1)
    estimate = Estimate(0, draws=64)
    found = evaluate(model, batches(n, 300), 0, 64, conditions="shuffled", partners=partners)
    assert found.conditions == SHUFFLED
    given = bounds_of_images(model, batches(n), estimate, GIVEN, n)
    shuffled = bounds_of_images(model, batches(n), estimate, SHUFFLED, n, partners)
    assert found.nats == pytest.approx(shuffled.mean().item(), rel=1e-6)
    difference = paired_difference(given, shuffled)
    wrong = 2 * (math.exp(-LOW) - math.exp(-HIGH))
    assert difference.nats == pytest.approx((1 - partners.same / n) * wrong, rel=0.02)
    assert difference.best[0].nats > 70
    assert difference.worst[0].nats == 0


def test_shuffled_conditions_need_those_of_the_set():
    with pytest.raises(TrainingError, match="condition label=shuffled: needs the conditions of the whole set"):
        evaluate(coins(), batches(4), 0, conditions="shuffled")


@pytest.mark.parametrize("steps", [None, 7])
def test_noise_levels_add_up_to_the_diffusion_term_of_the_bound(steps):
    model, n = coins(steps=steps), 200
    partners = PartnerConditions(read_conditions(batches(n), ["label"]), seed=0)
    choices = [("given", GIVEN), ("none", NONE), ("shuffled", SHUFFLED)]
    found = diffusion_by_level(model, batches(n, 64), Estimate(0), 6, choices, partners)
    assert found.images == n
    for name, _ in choices:
        bound = evaluate(model, batches(n), 0, 6, conditions=name, partners=partners)
        assert found.total.values[name].mean == pytest.approx(bound.rates["diffusion"], rel=1e-5, abs=1e-9)
        assert sum(level.values[name].mean for level in found.levels) == pytest.approx(found.total.values[name].mean)
    paired = found.total.differences["none"]
    assert paired.mean == pytest.approx(found.total.values["none"].mean - found.total.values["given"].mean)
    assert found.levels[0].log_snr[0] == 4
    assert found.levels[-1].log_snr[1] == -10


def test_information_is_found_at_the_noise_levels_where_it_is():
    """Of a coin at gamma: 1/2 dI/dgamma = E[1 - tanh^2] SNR / 2: nothing at the ends."""
    found = diffusion_by_level(coins(), batches(4000), Estimate(0), 16, [("given", GIVEN), ("none", NONE)])
    differences = [level.differences["none"].mean for level in found.levels]
    assert sum(differences) == pytest.approx(math.log(2), abs=0.03)
    middle = sum(differences[4:8])  # log SNR from 2 to -2
    assert middle > 0.6 * math.log(2)
    assert abs(differences[0]) < 1e-3
    assert abs(differences[-1]) < 1e-3


def test_the_eight_levels_of_a_rectified_flow_have_the_error_of_its_velocity():
    """Against v = eps - x computed from the definition, z = (1 - t) x + t eps."""
    model, n = coins(), 50
    (batch,) = batches(n)
    found = velocity_error_by_level(model, batches(n), Estimate(5), [("none", NONE)])
    x = COINS.scaled(batch.images[:-1], torch.float32)
    for i, level in enumerate(found.levels):
        t = (i + 0.5) / 8
        noise = Estimate(5).noise(batch.positions[:-1]).with_draw(i, 8)
        eps = noise.normal("eps", (1, 1, 2))
        z = (1 - t) * x + t * eps
        estimate = torch.tanh((1 - t) * z / t**2)  # the mean of a fair coin seen at this noise
        velocity = (z - estimate) / t
        assert level.values["none"].mean == pytest.approx((eps - x - velocity).square().mean().item(), rel=1e-3)
        assert level.log_snr[0] == pytest.approx(min(-LOW, 2 * math.log((1 - t) / t)))
    assert found.total.values["none"].mean == pytest.approx(sum(x.values["none"].mean for x in found.levels) / 8)


def test_a_model_without_noise_levels_is_refused():
    with pytest.raises(TrainingError, match="a Vae has no noise levels"):
        diffusion_by_level(models.build("vae-mlp"), [], Estimate(0), 4, [("given", {})])


def found_by(model, n, k, without=True):
    table = read_conditions(batches(n, 70), ["label"])
    bounds, none = bounds_in_groups(model, batches(n, 70), Estimate(0), GIVEN, table, k, without)
    members = groups_of(table, k, 0)
    same = table.same(members.repeat_interleave(k, 1).flatten(), members.repeat(1, k).flatten()).reshape(-1, k, k)
    return retrieval(bounds, none, same), bounds, members


def test_retrieval_finds_what_a_caption_tells():
    """Of two images with different labels the right one always; with equal ones it is a toss."""
    found, bounds, members = found_by(coins(), 501, 2)
    assert (found.k, found.images) == (2, 500)
    share = 1 - found.duplicates / 500 / 2
    assert found.caption.mean == share
    assert 0.7 < share < 0.8
    assert found.caption.standard_error == pytest.approx(math.sqrt(0.5 * 0.5 / 4 / 250), rel=0.1)
    assert found.image_by_gain.mean > 0.9 * share
    given = bounds_of_images(coins(), batches(501), Estimate(0), GIVEN, 501)
    torch.testing.assert_close(bounds.diagonal(dim1=1, dim2=2), given[members])


def test_retrieval_by_an_unconditional_model_is_chance():
    found, *_ = found_by(coins(listens=False), 300, 5)
    assert found.caption == found.image_by_gain == (pytest.approx(0.2, abs=1e-12), pytest.approx(0, abs=1e-12))
    assert found.image.mean == pytest.approx(0.2)


def test_retrieval_needs_a_group():
    with pytest.raises(TrainingError, match="retrieval among 9: there are 8 images"):
        found_by(coins(), 8, 9)
