"""The averaged weights: their half-life, the ramp at the start, and being put in the model's place for a while."""

import pytest
import torch
from torch import nn

from trainer.training.ema import RAMP, Ema


def model(value=0.0, dtype=torch.float32):
    made = nn.Linear(3, 2).to(dtype)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.fill_(value)
    return made


def set_to(made, value):
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.fill_(value)


@pytest.mark.parametrize("batch", [1, 10, 50])
def test_after_the_ramp_a_constant_stream_is_approached_by_half_in_a_half_life(batch):
    half_life, start = 100, 10_000  # the ramp is over after 100 / 0.05 = 2,000 images
    made = model(0.0, torch.float64)
    ema = Ema(made, half_life)
    set_to(made, 1.0)
    for images in range(start + batch, start + 3 * half_life + 1, batch):
        ema.update(images, batch)
        expected = 1 - 0.5 ** ((images - start) / half_life)
        for average in ema.average.values():
            torch.testing.assert_close(average, torch.full_like(average, expected), atol=1e-12, rtol=0)
    assert images == start + 3 * half_life


def test_the_number_of_steps_in_a_half_life_makes_no_difference():
    ends = []
    for batch in (1, 4, 20):
        made = model(0.0, torch.float64)
        ema = Ema(made, 100)
        set_to(made, 1.0)
        for images in range(10_000 + batch, 10_201, batch):
            ema.update(images, batch)
        ends.append(ema.average["weight"][0, 0].item())
    assert ends == pytest.approx([0.75] * 3, abs=1e-12)


def test_during_the_ramp_the_half_life_is_a_share_of_the_images_seen():
    made = model(0.0, torch.float64)
    ema = Ema(made, 10**9)
    set_to(made, 1.0)
    ema.update(1000, 10)
    expected = 1 - 0.5 ** (10 / (RAMP * 1000))
    assert ema.average["bias"][0].item() == pytest.approx(expected, abs=1e-14)


def test_the_ramp_forgets_the_initial_weights():
    made = model(1.0, torch.float64)
    ema = Ema(made, 10**9)  # never reached: without a ramp the average would stay at the initial weights
    set_to(made, 0.0)
    for images in range(10, 20_001, 10):
        ema.update(images, 10)
    assert ema.average["weight"].abs().max() < 1e-12


def test_the_first_update_before_any_image_does_not_fail():
    made = model(1.0)
    ema = Ema(made, 100)
    set_to(made, 2.0)
    ema.update(0, 10)
    assert torch.equal(ema.average["weight"], made.weight.detach())


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_model_computes_with_the_average_and_gets_its_own_weights_back_to_the_bit(fails, dtype):
    made = nn.Linear(3, 2).to(dtype)
    ema = Ema(made, 100)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter))
    ema.update(10_000, 10)
    own = {name: value.detach().clone() for name, value in made.named_parameters()}
    average = {name: value.clone() for name, value in ema.average.items()}
    x = torch.randn(4, 3, dtype=dtype)
    expected = nn.functional.linear(x, average["weight"].to(dtype), average["bias"].to(dtype))
    identity = [id(parameter) for parameter in made.parameters()]
    try:
        with ema.applied():
            assert torch.equal(made(x), expected)
            assert not torch.equal(made.weight, own["weight"])
            if fails:
                raise ZeroDivisionError
    except ZeroDivisionError:
        assert fails
    assert all(torch.equal(value, own[name]) for name, value in made.named_parameters())
    assert all(torch.equal(value, average[name]) for name, value in ema.average.items())
    assert [id(parameter) for parameter in made.parameters()] == identity  # the optimiser's


def test_the_average_of_weights_of_low_precision_is_kept_in_float32():
    made = model(1.0, torch.bfloat16)
    ema = Ema(made, 10_000)
    set_to(made, 2.0)
    for images in range(1_000_010, 1_001_011, 10):
        ema.update(images, 10)  # a single step moves by 0.0007, less than bfloat16 resolves
    assert ema.average["weight"].dtype == torch.float32
    assert ema.average["weight"][0, 0].item() == pytest.approx(2 - 0.5 ** (1010 / 10_000), abs=1e-4)


def test_the_state_goes_on_to_the_bit_in_another_process():
    def run(ema, made, first, last):
        for images in range(first, last, 10):
            set_to(made, float(images % 7))
            ema.update(images, 10)

    made = model()
    straight = Ema(made, 300)
    run(straight, made, 10, 2000)
    first, again = model(), model(5.0)
    one = Ema(first, 300)
    run(one, first, 10, 1000)
    other = Ema(again, 300)
    for name, value in other.state_dict().items():
        value.copy_(one.state_dict()[name])
    run(other, again, 1000, 2000)
    assert all(torch.equal(value, straight.average[name]) for name, value in other.average.items())
