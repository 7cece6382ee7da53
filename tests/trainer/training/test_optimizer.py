"""The learning rate as a function of the images seen, and an optimiser whose state is known by names."""

import math

import pytest
import torch
from torch import nn

from trainer.training.optimizer import (
    OptimConfig,
    adamw,
    allocated_optimizer_state,
    learning_rate,
    learning_rate_rise,
    optimizer_state,
)


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Tanh(), nn.Linear(7, 2))


def step(model, optimizer, number):
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(number))
    optimizer.zero_grad()
    model(x).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (0, 0.0),
        (50, 0.5),
        (99, 0.99),
        (100, 1.0),  # the end of the warm-up
        (350, 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4))),
        (600, 0.55),  # half of the way down
        (1100, 0.1),  # the end of the budget
        (5000, 0.1),
    ],
)
def test_the_learning_rate_warms_up_and_goes_down_a_half_cosine(images, expected):
    config = OptimConfig(lr=0.02, warmup=100, final_lr=0.1)
    assert learning_rate(config, images, 1100) == pytest.approx(0.02 * expected, rel=1e-12)


@pytest.mark.parametrize(("images", "expected"), [(0, 0.0), (50, 0.5), (100, 1.0), (600, 1.0), (10**9, 1.0)])
def test_a_constant_learning_rate_warms_up_and_stays(images, expected):
    config = OptimConfig(lr=0.02, warmup=100, schedule="constant")
    assert learning_rate(config, images, 1100) == 0.02 * expected


@pytest.mark.parametrize(
    ("images", "expected"),
    [(0, 0.0), (100, 1.0), (800, 1.0), (900, 0.55), (1000, 0.1), (5000, 0.1)],  # the last fifth of 1,000 decays
)
def test_warmup_stable_decay(images, expected):
    config = OptimConfig(lr=0.02, warmup=100, schedule="wsd", decay=0.2, final_lr=0.1)
    assert learning_rate(config, images, 1000) == pytest.approx(0.02 * expected, rel=1e-12)


def test_a_longer_budget_raises_a_rate_that_has_decayed_and_no_other():
    config = OptimConfig(lr=1.0, schedule="wsd", decay=0.5, final_lr=0.0)
    assert learning_rate_rise(config, 400, 1000, 2000) is None
    assert learning_rate_rise(config, 1000, 1000, 2000) == (
        "the learning rate rises from 0 to 1: its decay now ends after 2,000 images, not 1,000"
    )


@pytest.mark.parametrize("schedule", ["cosine", "constant", "wsd"])
def test_without_a_warm_up_the_first_step_has_the_whole_learning_rate(schedule):
    assert learning_rate(OptimConfig(lr=0.02, schedule=schedule), 0, 1000) == 0.02


@pytest.mark.parametrize("budget", [50, 100])
def test_a_budget_that_ends_within_the_warm_up_never_divides_by_zero(budget):
    config = OptimConfig(lr=0.02, warmup=100, final_lr=0.5)
    rates = [learning_rate(config, images, budget) for images in range(0, 301, 10)]
    assert rates[:10] == [pytest.approx(0.02 * images / 100) for images in range(0, 100, 10)]
    assert all(0.01 - 1e-15 <= rate <= 0.02 for rate in rates[10:])


def test_only_matrices_and_kernels_decay():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.GroupNorm(1, 2), nn.Linear(4, 3))
    optimizer = adamw(model, OptimConfig(lr=0.1, weight_decay=0.5))
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, value in model.named_parameters():
        factor = 1 - 0.1 * 0.5 if value.ndim >= 2 else 1
        torch.testing.assert_close(value.detach(), before[name] * factor)


def test_frozen_parameters_are_left_out():
    model = network()
    model[0].weight.requires_grad_(False)
    held = [p for group in adamw(model, OptimConfig()).param_groups for p in group["params"]]
    assert len(held) == 5
    assert all(parameter is not model[0].weight for parameter in held)


def test_a_step_is_that_of_the_paper():
    """Kingma and Ba 2015, algorithm 1, with the decay of Loshchilov and Hutter 2019, over three steps."""
    model = nn.Linear(3, 2, bias=False).double()
    config = OptimConfig(lr=0.03, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.2)
    optimizer = adamw(model, config)
    w = model.weight.detach().clone()
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    for t in range(1, 4):
        g = torch.randn(2, 3, generator=torch.Generator().manual_seed(t), dtype=torch.float64)
        model.weight.grad = g.clone()
        optimizer.step()
        m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g**2
        w = w * (1 - 0.03 * 0.2)
        w = w - 0.03 * (m / (1 - 0.8**t)) / ((v / (1 - 0.95**t)).sqrt() + 1e-6)
        torch.testing.assert_close(model.weight.detach(), w, atol=1e-12, rtol=1e-12)


def restore(optimizer, model, saved):
    for name, value in allocated_optimizer_state(optimizer, model, saved.keys()).items():
        value.copy_(saved[name])


@pytest.mark.parametrize("before", [0, 1, 5])
def test_the_state_by_names_goes_on_to_the_bit_in_a_fresh_optimizer(before):
    config = OptimConfig(lr=0.01, weight_decay=0.1)
    model = network()
    optimizer = adamw(model, config)
    for number in range(before):
        step(model, optimizer, number)
    saved = {name: value.clone() for name, value in optimizer_state(optimizer, model).items()}
    weights = {name: value.clone() for name, value in model.state_dict().items()}

    again = network(seed=1)
    again.load_state_dict(weights)
    fresh = adamw(again, config)
    restore(fresh, again, saved)
    for number in range(before, before + 4):
        step(model, optimizer, number)
        step(again, fresh, number)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())
    ended, resumed = optimizer_state(optimizer, model), optimizer_state(fresh, again)
    assert ended.keys() == resumed.keys()
    assert all(torch.equal(resumed[name], ended[name]) for name in ended)


def test_restored_moments_have_the_strides_of_their_parameters():
    """The fused kernels pair them in memory order: CUDA's raises if strides differ, the CPU's gives another step."""

    def convolutions(seed=0):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Conv2d(4, 2, 3)).to(memory_format=torch.channels_last)

    def step(model, optimizer):
        optimizer.zero_grad()
        model(torch.linspace(-1, 1, 2 * 3 * 36).reshape(2, 3, 6, 6)).square().sum().backward()
        optimizer.step()

    model, again = convolutions(), convolutions(1)
    optimizer, fresh = adamw(model, OptimConfig(lr=0.1)), adamw(again, OptimConfig(lr=0.1))
    step(model, optimizer)
    again.load_state_dict(model.state_dict())
    saved = {name: value.contiguous() for name, value in optimizer_state(optimizer, model).items()}
    restore(fresh, again, saved)
    for parameter in again.parameters():
        assert fresh.state[parameter]["exp_avg"].stride() == parameter.stride()
        assert fresh.state[parameter]["exp_avg_sq"].stride() == parameter.stride()
    step(model, optimizer)
    step(again, fresh)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())


def test_the_names_are_those_of_the_parameters():
    model = network()
    optimizer = adamw(model, OptimConfig())
    assert optimizer_state(optimizer, model) == {}  # nothing has been stepped
    step(model, optimizer, 0)
    parameters = [name for name, _ in model.named_parameters()]
    what = ("step", "exp_avg", "exp_avg_sq")
    assert optimizer_state(optimizer, model).keys() == {f"{name}.{key}" for name in parameters for key in what}
    assert optimizer_state(optimizer, model)["0.weight.step"].item() == 1


def test_the_state_does_not_depend_on_the_order_or_grouping_of_the_parameters():
    """A later version may group its parameters in another way; the names still find their own moments."""
    config = OptimConfig(lr=0.01)
    model = network()
    optimizer = adamw(model, config)
    for number in range(3):
        step(model, optimizer, number)
    again = network()
    again.load_state_dict(model.state_dict())
    regrouped = torch.optim.AdamW(reversed(list(again.parameters())), lr=0.01, weight_decay=0.0, fused=True)
    restore(regrouped, again, optimizer_state(optimizer, model))
    # copies of their own: a step of one leaves the other's moments alone
    step(again, regrouped, 3)
    step(model, optimizer, 3)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())


@pytest.mark.parametrize("wrong", [{"lr": 0}, {"lr": -1}, {"warmup": -1}, {"clip": 0}, {"ema": 0}, {"final_lr": -0.1}])
def test_settings_without_a_meaning_are_refused(wrong):
    with pytest.raises(ValueError, match="greater than"):
        OptimConfig(**wrong)


def test_a_larger_budget_that_raises_the_learning_rate_is_reported():
    config = OptimConfig(lr=1.0, final_lr=0.0)
    assert learning_rate_rise(config, 100, 100, 200) == (
        "the learning rate rises from 0 to 0.5: its cosine now ends after 200 images, not 100"
    )
    assert learning_rate_rise(config, 100, 100, 100) is None
    assert learning_rate_rise(config, 50, 200, 100) is None  # a smaller budget lowers it
    assert learning_rate_rise(OptimConfig(schedule="constant"), 100, 100, 200) is None
