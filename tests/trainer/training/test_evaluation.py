"""The bound over a whole set: every image once, in double precision, however it is cut into batches."""

import math
from types import SimpleNamespace

import pytest
import torch

from tests.trainer.models import ALL_MODELS, batch, build
from trainer.distributed.interruption import StopRequestedError, interruptible
from trainer.elbo import Elbo
from trainer.errors import TrainingError
from trainer.images import ImageSpec
from trainer.models.base import Model
from trainer.noise import Noise
from trainer.training.evaluation import batch_size, evaluate

SPEC = ImageSpec(1, 2, 5, 17)


class Table(Model):
    """A "model" whose terms are given for every position."""

    def __init__(self, distortion, z1, z2, is_density=False):
        super().__init__()
        self.spec, self.is_density = SPEC, is_density
        self.terms = torch.stack([distortion, z1, z2])
        self.asked = []

    def forward(self, images, condition, noise, progress):
        assert not self.training
        assert not torch.is_grad_enabled()
        assert noise.purpose == "evaluate"
        self.asked += noise.positions.tolist()
        distortion, z1, z2 = self.terms[:, noise.positions]
        return Elbo(distortion, {"z1": z1, "z2": z2}, objective=distortion * 1e6)


def batches(n, size, spec=SPEC):
    """The positions 0 .. n-1 in batches of `size`, the last one padded by images of weight zero."""
    for first in range(0, n, size):
        positions = torch.arange(first, first + size)
        weights = (positions < n).float()
        positions = positions.clamp(max=n - 1)
        images = torch.zeros(size, *spec.shape, dtype=torch.uint8)
        yield SimpleNamespace(images=images, conditions={"label": positions % 10}, positions=positions, weights=weights)


def terms(n, seed=0, offset=0.0):
    return torch.randn(3, n, generator=torch.Generator().manual_seed(seed)) * 5 + 20 + offset


@pytest.mark.parametrize("size", [1, 7, 10, 64])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_means_and_standard_error_equal_the_direct_formula(size, seed):
    n = 50
    table = terms(n, seed)
    got = evaluate(Table(*table), batches(n, size), seed=0)
    bound = table.double().sum(0)
    assert got.images == n
    assert got.distortion == pytest.approx(table[0].double().mean().item(), rel=1e-12)
    assert got.rates == pytest.approx({"z1": table[1].double().mean().item(), "z2": table[2].double().mean().item()})
    assert got.nats == pytest.approx(bound.mean().item(), rel=1e-7)  # each bound is added up in float32
    assert got.standard_error == pytest.approx((bound.std(correction=0) / math.sqrt(n)).item(), rel=1e-5)
    assert got.bpd == pytest.approx(got.nats / (10 * math.log(2)), rel=1e-12)


def test_padding_changes_nothing():
    table = terms(50)
    table = torch.cat([table, torch.full((3, 1), torch.nan)], dim=1)  # were it looked at, nothing would be left

    def padded():
        for given in batches(50, 8):
            given.positions[given.weights == 0] = 50
            yield given

    got = evaluate(Table(*table), padded(), seed=0)
    whole = evaluate(Table(*table), batches(50, 50), seed=0)
    assert got.images == whole.images == 50
    assert got.nats == pytest.approx(whole.nats, rel=1e-14)
    assert got.standard_error == pytest.approx(whole.standard_error, rel=1e-9)


def test_large_bounds_that_differ_little_keep_their_error():
    """Bounds near 30,000 nats that differ by tenths: float32 squares would be off by more than all of it."""
    n = 200
    table = torch.zeros(3, n)
    table[0] = 30_000 + torch.arange(n).remainder(5) * 0.25
    got = evaluate(Table(*table), batches(n, 16), seed=0)
    expected = table[0].double().std(correction=0).item() / math.sqrt(n)
    assert got.nats == pytest.approx(30_000.5, abs=1e-9)
    assert got.standard_error == pytest.approx(expected, rel=1e-4)


def test_equal_bounds_have_no_error():
    got = evaluate(Table(*torch.full((3, 30), 1234.567)), batches(30, 8), seed=0)
    assert got.standard_error == pytest.approx(0, abs=1e-5)
    assert not math.isnan(got.standard_error)


@pytest.mark.parametrize("is_density", [False, True])
def test_a_density_gives_no_bits_per_dimension(is_density):
    got = evaluate(Table(*terms(9), is_density=is_density), batches(9, 4), seed=0)
    row = got.row("validation")
    assert math.isnan(got.bpd) == is_density
    assert ("validation/bpd" in row) == (not is_density)
    assert ("bpd" in str(got)) == (not is_density)
    assert ("nats (a density)" in str(got)) == is_density
    names = ["nats", "standard_error", *([] if is_density else ["bpd"]), "distortion", "rate/z1", "rate/z2"]
    assert list(row) == [f"validation/{name}" for name in names]
    assert all(math.isfinite(value) for value in row.values())


def test_every_image_is_evaluated_once_and_the_model_is_back_in_training_mode():
    model = Table(*terms(20)).train()
    evaluate(model, batches(20, 5), seed=0)
    assert model.asked == list(range(20))
    assert model.training


@pytest.mark.parametrize("name", ["vae-mlp", "hvae", "ladder-mlp", "diffusion"])
def test_a_real_model_has_the_same_figures_for_any_batch_size(name):
    spec, _ = ALL_MODELS[name]
    model, images = build(name), batch(spec, 12)

    def parts(size):
        for given in batches(12, size, spec):
            given.images = images[given.positions]
            yield given

    one, other = (evaluate(model, parts(size), seed=5) for size in (12, 5))
    assert one.images == other.images == 12
    assert other.nats == pytest.approx(one.nats, rel=1e-5)
    assert other.rates == pytest.approx(one.rates, rel=1e-4, abs=1e-4)
    direct = model(images, None, Noise(5, "evaluate", torch.arange(12)), torch.tensor(0.0)).negative_bound
    assert one.nats == pytest.approx(direct.double().mean().item(), rel=1e-5)


def test_another_seed_draws_other_noise():
    spec, _ = ALL_MODELS["vae-mlp"]
    model = build("vae-mlp")
    figures = [evaluate(model, batches(8, 4, spec), seed=seed).nats for seed in (0, 0, 1)]
    assert figures[0] == figures[1] != figures[2]


def test_an_interrupted_evaluation_is_abandoned_after_the_batch():
    model, answers = Table(*terms(20)).train(), iter([False, True, True])
    with interruptible(lambda: next(answers)), pytest.raises(StopRequestedError):
        evaluate(model, batches(20, 5), seed=0)
    assert model.asked == list(range(10))
    assert model.training


@pytest.mark.parametrize(
    ("micro_batch", "batch", "ranks", "size"),
    [
        (None, 128, 1, 128),
        (None, 128, 3, 42),
        (None, 4096, 2, 256),
        (16, 4096, 2, 16),
        (512, 4096, 2, 512),
        (None, 2, 4, 1),
    ],
)
def test_a_rank_evaluates_as_many_images_at_once_as_it_trains_on(micro_batch, batch, ranks, size):
    assert batch_size(micro_batch, batch, ranks) == size


@pytest.mark.parametrize(("conditions", "classes"), [((), 10), (("label",), 0), (("label",), 10)])
def test_labels_are_given_to_models_that_take_them_and_the_evaluation_says_so(conditions, classes):
    class Conditioned(Table):
        @property
        def conditions(self):
            return conditions

        def forward(self, images, condition, noise, progress):
            self.given = condition
            return super().forward(images, condition, noise, progress)

    model = Conditioned(*terms(8))
    model.spec = SPEC._replace(classes=classes)
    found = evaluate(model, batches(8, 4), seed=0)
    takes_labels = conditions == ("label",) and classes > 0
    assert found.conditions == ({"label": "given"} if takes_labels else {})
    assert (model.given is not None) == takes_labels
    assert (", conditional on label, " if takes_labels else ", unconditional, ") in str(found)
    left_out = evaluate(model, batches(8, 4), seed=0, conditions="none")
    assert model.given is None
    assert left_out.conditions == ({"label": "none"} if takes_labels else {})
    assert (", unconditional (label left out), " if takes_labels else ", unconditional, ") in str(left_out)


@pytest.mark.parametrize("name", ALL_MODELS)
def test_every_model_is_evaluated_by_every_bound_that_it_declares(name):
    spec, _ = ALL_MODELS[name]
    model, images = build(name), batch(spec, 4)
    if "diffusion" in name:
        model.set_steps(3)
    else:
        with pytest.raises(TrainingError, match="has a fixed number of latents"):
            model.set_steps(3)

    def parts():
        for given in batches(4, 2, spec):
            given.images = images[given.positions]
            yield given

    assert {"elbo", "iw"} <= model.bounds.keys()
    for bound in model.bounds:
        found = evaluate(model, parts(), seed=0, draws=2, bound=bound)
        assert math.isfinite(found.nats)
        assert found.nats > 0 or bound == "flow"  # which is no bound, and far off in three steps
        assert bool(found.rates) == (bound == "elbo")
        assert math.isnan(found.distortion) == (bound != "elbo")
