"""A step with a bad gradient is not taken, is counted, and a run that keeps diverging stops with the reason."""

import math

import pytest
import torch
from torch import nn

from trainer.errors import TrainingError
from trainer.training.guard import LEVEL_STEPS, Guard, GuardConfig
from trainer.training.optimizer import OptimConfig, adamw, optimizer_state

CPU = torch.device("cpu")


class Training:
    """A tiny model with its optimiser and guard; `step(norm)` is one with a gradient of that norm."""

    def __init__(self, max_skips=5, clip=1000.0, factor=20.0):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
        self.optimizer = adamw(self.model, OptimConfig(lr=0.01, weight_decay=0.1))
        self.guard = Guard(GuardConfig(factor=factor, max_skips=max_skips), CPU)
        self.clip, self.number = clip, 0

    def step(self, norm=1.0, spoil=None):
        self.number += 1
        generator = torch.Generator().manual_seed(self.number)
        parameters = list(self.model.parameters())
        gradients = [torch.randn(p.shape, generator=generator) for p in parameters]
        whole = math.sqrt(sum(g.square().sum().item() for g in gradients))
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient * (norm / whole)
        if spoil is not None:
            parameters[1].grad.view(-1)[0] = spoil
        return self.guard.step(self.optimizer, parameters, self.clip)

    def everything(self):
        weights = {name: value.detach().clone() for name, value in self.model.named_parameters()}
        return weights | {name: value.clone() for name, value in optimizer_state(self.optimizer, self.model).items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


BAD = {
    "nan": {"spoil": math.nan},
    "inf": {"spoil": math.inf},
    "-inf": {"spoil": -math.inf},
    "overflow": {"spoil": 3e38},  # finite, its square is not
    "explosion": {"norm": 21.0},
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_a_bad_step_leaves_weights_moments_and_step_counts_as_they_are_to_the_bit(bad):
    training = Training()
    for _ in range(LEVEL_STEPS):
        training.step()
    before = training.everything()
    assert len(before) == 4 * 4
    training.step(**bad)
    assert same(training.everything(), before)
    assert training.guard.check() == 1

    training.step()  # and the next one is taken
    after = training.everything()
    assert all(not torch.equal(after[name], before[name]) for name in before)
    assert after["0.weight.step"].item() == LEVEL_STEPS + 1
    assert training.guard.check() == 1


@pytest.mark.parametrize("bad", [{"spoil": math.nan}, {"spoil": math.inf}])
def test_the_very_first_step_may_be_bad(bad):
    training = Training()
    before = {name: value.detach().clone() for name, value in training.model.named_parameters()}
    training.step(**bad)
    assert same({name: value.detach() for name, value in training.model.named_parameters()}, before)
    assert training.guard.check() == 1
    training.step()
    assert all(value.isfinite().all() for value in training.everything().values())
    assert optimizer_state(training.optimizer, training.model)["0.weight.step"].item() == 1


def test_a_run_with_a_skipped_step_goes_on_as_the_run_that_never_had_it():
    with_it, without = Training(), Training()
    for number in range(30):
        if number == 25:
            with_it.step(spoil=math.nan)
            without.number += 1
        with_it.step()
        without.step()
    assert same(with_it.everything(), without.everything())
    assert torch.equal(with_it.guard.state[:2], without.guard.state[:2])  # the running level is the same too


@pytest.mark.parametrize(("norm", "skipped"), [(19.9, 0), (20.2, 1)])
def test_an_explosion_is_told_by_its_factor_to_the_running_level(norm, skipped):
    training = Training(factor=20.0)
    for _ in range(2 * LEVEL_STEPS):
        training.step(1.0)
    training.step(norm)
    assert training.guard.check() == skipped


def test_large_steps_are_taken_before_the_level_is_trusted():
    training = Training()
    for _ in range(LEVEL_STEPS - 1):
        training.step(1.0)
    training.step(500.0)
    assert training.guard.check() == 0


def test_the_level_follows_norms_that_grow_slowly():
    training = Training()
    for number in range(400):
        training.step(1.03**number)  # in all 130,000 times as large
    assert training.guard.check() == 0


def test_the_first_level_is_the_plain_mean_of_the_logarithms():
    training = Training()
    norms = [1.0, 10.0, 3.0, 0.2]
    for norm in norms:
        training.step(norm)
    level = sum(map(math.log, norms)) / len(norms)
    assert training.guard.state[0].item() == pytest.approx(level, abs=1e-5)


def test_a_skipped_step_does_not_raise_the_level():
    training = Training()
    for _ in range(LEVEL_STEPS):
        training.step(1.0)
    level = training.guard.state[0].clone()
    training.step(1e6)
    assert torch.equal(training.guard.state[0], level)


def test_larger_gradients_are_scaled_down_and_told_as_they_were():
    training, by_hand = Training(clip=2.0), Training()
    norm = training.step(8.0)
    assert norm.item() == pytest.approx(8.0, rel=1e-6)
    whole = math.sqrt(sum(p.grad.square().sum().item() for p in training.model.parameters()))
    assert whole == pytest.approx(2.0, rel=1e-5)
    by_hand.step(2.0)
    for name, value in training.everything().items():
        torch.testing.assert_close(value, by_hand.everything()[name])


@pytest.mark.parametrize("bad", [{"spoil": math.nan}, {"norm": 1e9}])
def test_persistent_divergence_ends_the_run_with_the_reason(bad):
    training = Training(max_skips=5)
    for _ in range(LEVEL_STEPS):
        training.step(3.0)
    for _ in range(4):
        training.step(**bad)
    assert training.guard.check() == 4  # not yet
    training.step(**bad)
    with pytest.raises(TrainingError) as raised:
        training.guard.check()
    assert str(raised.value) == (
        "diverged: 5 steps in a row had a gradient that was not finite or more than 20 times its running level of 3 "
        "(after 20 good steps); lower optim.lr or lengthen optim.warmup"
    )


def test_a_divergence_between_two_looks_is_found_though_it_passed():
    training = Training(max_skips=5)
    for _ in range(5):
        training.step(spoil=math.nan)
    training.step()
    with pytest.raises(TrainingError, match="diverged: 5 steps in a row"):
        training.guard.check()


def test_skips_that_are_not_in_a_row_are_counted_and_borne():
    training = Training(max_skips=5)
    for number in range(60):
        training.step(spoil=math.nan if number % 4 else None)
    assert training.guard.check() == 45
    assert training.guard.check() == 45  # a look changes nothing


def test_a_row_of_skips_goes_on_over_a_look():
    training = Training(max_skips=5)
    for _ in range(3):
        training.step(spoil=math.nan)
    assert training.guard.check() == 3
    for _ in range(2):
        training.step(spoil=math.nan)
    with pytest.raises(TrainingError, match="diverged: 5"):
        training.guard.check()


def test_the_state_goes_on_in_another_process():
    straight, first = Training(), Training()
    norms = [1.0] * 25 + [50.0, 2.0, 3.0] + [1e9] * 2 + [1.5] * 5 + [70.0] * 3
    for norm in norms[:28]:
        straight.step(norm)
        first.step(norm)
    again = Training()
    again.guard.state = torch.tensor(first.guard.state.tolist())  # as JSON keeps it
    again.number = first.number
    for norm in norms[28:]:
        straight.step(norm)
        again.step(norm)
        assert torch.equal(again.guard.state, straight.guard.state)
    assert again.guard.check() == straight.guard.check() == 6


def test_nothing_of_a_step_waits_for_the_device(monkeypatch):
    training = Training()

    def looked(*_):
        raise AssertionError("the host looked at a tensor within a step")

    for name in ("item", "tolist", "__bool__", "__float__", "__int__"):
        monkeypatch.setattr(torch.Tensor, name, looked)
    parameters = list(training.model.parameters())
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    training.guard.step(training.optimizer, parameters, 1.0)
