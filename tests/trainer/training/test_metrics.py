"""What is logged: means over the images of all micro-batches since the last row, the same whoever added them up."""

import math

import pytest
import torch

from trainer.elbo import Elbo
from trainer.images import ImageSpec
from trainer.models.base import Model
from trainer.training.metrics import Clock, Metrics

CPU = torch.device("cpu")


def model(is_density=False):
    found = Model()
    found.spec, found.is_density = ImageSpec(1, 2, 5, 17), is_density
    return found


def elbo(n, seed=0):
    values = torch.randn(3, n, generator=torch.Generator().manual_seed(seed)).abs() * 10
    return Elbo(values[0], {"z1": values[1], "z2": values[2]}, objective=values.sum(0) * 0 + 1e6)


def test_a_row_has_the_means_over_the_images_of_all_micro_batches():
    sums, parts = Metrics(CPU), [elbo(4, 0), elbo(4, 1), elbo(4, 2)]
    for part in parts:
        sums.add(part, torch.ones(4))
    for norm in (1.0, 3.0):
        sums.add_norm(torch.tensor(norm))
    row = sums.row(model())

    def mean(of):
        return torch.cat([of(part) for part in parts]).double().mean().item()

    assert list(row) == [
        "train/conditions",
        "train/nats",
        "train/bpd",
        "train/distortion",
        "train/rate/z1",
        "train/rate/z2",
        "train/gradient_norm",
    ]
    assert row["train/distortion"] == pytest.approx(mean(lambda part: part.distortion), rel=1e-12)
    assert row["train/rate/z1"] == pytest.approx(mean(lambda part: part.rates["z1"]), rel=1e-12)
    assert row["train/rate/z2"] == pytest.approx(mean(lambda part: part.rates["z2"]), rel=1e-12)
    # the honest bound, not what is descended
    assert row["train/nats"] == pytest.approx(mean(lambda part: part.negative_bound), rel=1e-6)
    assert row["train/bpd"] == pytest.approx(row["train/nats"] / (10 * math.log(2)), rel=1e-12)
    assert row["train/gradient_norm"] == 2.0


def test_padding_does_not_count():
    whole, padded = Metrics(CPU), Metrics(CPU)
    part = elbo(6)
    whole.add(Elbo(part.distortion[:4], {name: rate[:4] for name, rate in part.rates.items()}), torch.ones(4))
    padded.add(part, torch.tensor([1.0, 1, 1, 1, 0, 0]))
    assert padded.row(model()) == whole.row(model())


def test_a_row_is_a_new_start():
    sums = Metrics(CPU)
    sums.add(elbo(4, 0), torch.ones(4))
    sums.add_norm(torch.tensor(7.0))
    sums.row(model())
    sums.add(elbo(4, 1), torch.ones(4))
    sums.add_norm(torch.tensor(1.0))
    fresh = Metrics(CPU)
    fresh.add(elbo(4, 1), torch.ones(4))
    fresh.add_norm(torch.tensor(1.0))
    assert sums.row(model()) == fresh.row(model())


def test_a_density_has_no_bits_per_dimension():
    sums = Metrics(CPU)
    sums.add(elbo(4), torch.ones(4))
    row = sums.row(model(is_density=True))
    assert "train/bpd" not in row
    assert "train/nats" in row


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_norm_that_is_not_finite_is_left_out_of_the_mean(bad):
    sums = Metrics(CPU)
    sums.add(elbo(4), torch.ones(4))
    for norm in (2.0, bad, 4.0):
        sums.add_norm(torch.tensor(norm))
    assert sums.row(model())["train/gradient_norm"] == 3.0


def test_many_images_are_added_up_in_double_precision():
    sums = Metrics(CPU)
    part = Elbo(torch.full((100,), 30_000.1), {"z1": torch.full((100,), 1e-3)})
    for _ in range(1000):
        sums.add(part, torch.ones(100))
    row = sums.row(model())
    assert row["train/distortion"] == pytest.approx(torch.tensor(30_000.1).item(), rel=1e-12)
    assert row["train/rate/z1"] == pytest.approx(torch.tensor(1e-3).item(), rel=1e-12)


@pytest.mark.parametrize("at", [0, 1, 3])
def test_the_state_goes_on_to_the_bit_in_another_process(at):
    straight, first, again = Metrics(CPU), Metrics(CPU), Metrics(CPU)
    for number in range(5):
        sums = straight, first if number < at else again
        if number == at:
            again.load_state_dict(first.state_dict())
        for each in sums:
            each.add(elbo(4, number), torch.ones(4))
            each.add_norm(torch.tensor(float(number)))
    assert again.row(model()) == straight.row(model())


def test_the_clock_leaves_pauses_out_and_adds_up_checkpoint_stalls(monkeypatch):
    now = 100.0
    monkeypatch.setattr("trainer.training.metrics.time.monotonic", lambda: now)
    clock = Clock(1000, utilisation=0.002)
    now += 3
    with clock.stall():
        now += 1
    shared = {"images_per_second": 200 / 3, "images_per_second_per_device": 200 / 3, "data_wait": 1 / 3}
    expected = {**shared, "mfu": 0.4 / 3, "checkpoint_stall": 1.0}
    assert clock.row(1200, waited=1.0) == pytest.approx(expected)
    now += 1
    with clock.stall():
        now += 5
    with clock.pause():
        now += 60  # an evaluation
    now += 2
    assert clock.row(1500, waited=1.75) == {
        "images_per_second": 100.0, "images_per_second_per_device": 100.0, "mfu": 0.2, "data_wait": 0.25,
        "checkpoint_stall": 5.0,
    }  # fmt: skip
    now += 1
    assert clock.row(1600, waited=2.5)["checkpoint_stall"] == 0
    assert "mfu" not in Clock(0).row(1, waited=0.0)
