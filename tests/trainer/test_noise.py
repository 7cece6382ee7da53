"""Noise is a pure function of (seed, purpose, name, position, draw), looks random, and never changes its numbers.

Bounds on statistics are five standard deviations of the statistic under independence; the numbers are fixed, so a test
that passes once passes always.
"""

import math

import pytest
import torch

from trainer.noise import Noise, _words

SEEDS = [0, 1, 17, 2**31 + 5]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


GOLDEN = [
    [-1017525771, -1424979187, -2035783338, 1780746421],
    [375526659, -1180622276, -1078462841, 147212034],
    [-1549364445, -1245452947, 205380147, 869144031],
]
GOLDEN_NORMALS = [
    [1.3856344476018099, -0.3110741524508018, -0.6187095731658774],
    [-0.16464485364486975, -1.4369421035228633, -0.10328354752521193],
    [-0.8652213130998812, -1.3746254344167481, 0.8697957473259795],
]


def noise(positions=range(64), seed=3, purpose="train", **rest):
    return Noise(seed, purpose, torch.as_tensor(list(positions), dtype=torch.int64), **rest)


def bits(given, n=64, name="z"):
    return given._bits(name, n)


# ---- the same numbers, whoever draws them


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", ["normal", "uniform"])
@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 4, 5)])
def test_any_split_and_any_order_of_the_positions_gives_the_same_numbers(method, shape, dtype):
    def draw(positions):
        return getattr(noise(positions, dtype=dtype, draw=2, draws=3), method)("z1", shape)

    positions = torch.cat([torch.arange(20), torch.tensor([2**31, 2**32 - 1, 2**32, 2**45 + 3])]).tolist()
    whole = draw(positions)
    assert whole.shape == (24, *shape)
    assert whole.dtype == dtype
    for ranks in (2, 3, 8):
        for rank in range(ranks):
            assert torch.equal(draw(positions[rank::ranks]), whole[rank::ranks])
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    assert torch.equal(draw([positions[i] for i in order]), whole[order])
    assert torch.equal(torch.cat([draw([p]) for p in positions]), whole)


def test_the_state_of_the_library_generators_plays_no_part():
    torch.manual_seed(1)
    first = noise().normal("z", (5,))
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert torch.equal(noise().normal("z", (5,)), first)
    assert torch.equal(torch.get_rng_state(), state)


def test_more_elements_leave_the_first_ones_of_a_uniform_draw_as_they_are():
    assert torch.equal(noise().uniform("t", (10,))[:, :4], noise().uniform("t", (4,)))


def reference(seed, purpose, name, position, draw, n):
    """The hash in exact integers of Python, written from its description."""
    word = 0xFFFFFFFF
    first, second = _words(seed, f"{purpose}/{name}")

    def mix(x, inject=0):
        x = ((x ^ (x >> 16)) * 0x7FEB352D & word) ^ inject
        x = (x ^ (x >> 15)) * 0x846CA68B & word
        return x ^ (x >> 16)

    low = mix((position + first + draw * 0x9E3779B9) & word)
    key = mix(low ^ mix(((position >> 32) + second) & word))
    inject = mix((low + second + draw * 0x6A09E667) & word)
    return [mix((element * 0x9E3779B9 + key) & word, inject) for element in range(n)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("draw", [0, 1, 999])
def test_the_integers_are_those_of_exact_arithmetic_on_every_device(seed, draw, device):
    positions = [0, 1, 2, 127, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**40 + 12345, 2**62]
    given = Noise(seed, "evaluate", torch.tensor(positions, device=device), draw=draw)
    words = [[word & 0xFFFFFFFF for word in row] for row in bits(given, 9).tolist()]
    assert words == [reference(seed, "evaluate", "z", position, draw, 9) for position in positions]


def test_the_numbers_are_those_of_the_first_version():
    """Whoever changes the generator changes every run that goes on from a checkpoint; this may never be updated."""
    given = noise([0, 1, 2**33 + 7], seed=5, purpose="sample", draw=1, draws=2)
    assert bits(given, 4).tolist() == GOLDEN
    expected = torch.tensor(GOLDEN_NORMALS, dtype=torch.float64)
    normals = noise([0, 1, 2**33 + 7], seed=5, purpose="sample", dtype=torch.float64).normal("z", (3,))
    torch.testing.assert_close(normals, expected, atol=1e-12, rtol=0)


def test_a_draw_is_not_another_draw_of_another_image():
    """The two steps of the draw must not let one position's draw d be the draw 0 of a position further on."""
    for draw in (1, 2, 50):
        further = (7 + draw * 0x9E3779B9) % 2**32
        first = noise([7], seed=0, purpose="evaluate", draw=draw, draws=64).normal("z", (2000,))
        second = noise([further], seed=0, purpose="evaluate", draw=0, draws=64).normal("z", (2000,))
        assert abs(torch.corrcoef(torch.cat([first, second]))[0, 1]) < 0.1


def test_a_compiled_graph_without_breaks_draws_the_same_integers():
    def draw(positions):
        given = Noise(3, "train", positions)
        return given._bits("z", 32)

    positions = torch.tensor([0, 5, 2**31, 2**32 + 9])
    assert torch.equal(torch.compile(draw, fullgraph=True)(positions), draw(positions))


# ---- they look random


def moments_are_normal(values):
    n = values.numel()
    values = values.double().flatten()
    for power, expected, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (5, 0, 945), (6, 15, 10170)):
        assert values.pow(power).mean().item() == pytest.approx(expected, abs=5 * math.sqrt(variance / n)), power


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("images", "shape"), [(20_000, (1,)), (2, (10_001,)), (150, (3, 8, 8))])
def test_normal_values_have_the_moments_of_the_normal_distribution(seed, images, shape):
    values = noise(range(images), seed).normal("z", shape)
    moments_are_normal(values)
    assert values.isfinite().all()


def test_normal_values_reach_far_out_and_no_farther_than_31_bits_allow():
    values = noise(range(2000), 1).normal("z", (500,))
    assert 4.6 < values.abs().max() < math.sqrt(2 * 31 * math.log(2))  # a million: largest expected near 4.9
    tail = (values.abs() > 3).double().mean().item()
    assert tail == pytest.approx(0.0026998, abs=5 * math.sqrt(0.0027 / values.numel()))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniform_values_fill_their_range_evenly(seed, dtype):
    values = noise(range(400), seed, dtype=dtype).uniform("t", (160,))
    assert values.dtype == dtype
    assert 0 <= values.min() < 1e-3
    assert 1 - 1e-3 < values.max() < 1
    assert torch.equal(values * 2**24, (values * 2**24).round())
    counts = torch.histc(values.double(), 256, 0, 1)
    expected = values.numel() / 256
    chi_square = ((counts - expected) ** 2 / expected).sum().item()
    assert chi_square == pytest.approx(255, abs=5 * math.sqrt(2 * 255))


def differ_at_random(one, other):
    """Half of the bits agree, each of the 32 of them half of the time."""
    differing = (one ^ other).flatten()[:, None].bitwise_right_shift(torch.arange(32, dtype=torch.int32)) & 1
    n = len(differing)
    assert differing.double().mean().item() == pytest.approx(0.5, abs=5 * 0.5 / math.sqrt(32 * n))
    assert (differing.double().mean(0) - 0.5).abs().max() < 5 * 0.5 / math.sqrt(n)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "other",
    [
        {"seed": 4},
        {"purpose": "evaluate"},
        {"purpose": "sample"},
        {"name": "z2"},
        {"name": "z1 "},
        {"draw": 1},
        {"draw": 2},
        {"shift": 1},
        {"shift": 1024},
        {"shift": 2**31},
        {"shift": 2**32},
        {"shift": 2**33},
        {"shift": 2**40},
    ],
    ids=str,
)
def test_every_part_of_the_key_makes_another_stream(seed, other):
    other = dict(other)
    shift, name = other.pop("shift", 0), other.pop("name", "z1")
    if "seed" in other:
        other["seed"] = seed + other["seed"]
    one = bits(noise(range(200), seed), 100, "z1")
    differ_at_random(one, bits(noise(range(shift, shift + 200), **({"seed": seed} | other)), 100, name))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("lag", [1, 2, 3, 64])
def test_elements_of_an_image_do_not_depend_on_one_another(seed, lag):
    words = bits(noise(range(100), seed), 300)
    differ_at_random(words[:, lag:], words[:, :-lag])
    values = noise(range(100), seed).normal("z", (300,)).double()
    products = values[:, lag:] * values[:, :-lag]
    assert products.mean().abs() < 5 / math.sqrt(products.numel())
    # the two halves of Box and Muller share a radius: their squares must not show it beyond the pair itself
    pair = (values[:, :150] * values[:, 150:]).mean()
    assert pair.abs() < 5 / math.sqrt(100 * 150)
    squares = ((values[:, :150] ** 2 - 1) * (values[:, 150:] ** 2 - 1)).mean()
    assert squares.abs() < 5 * 2 / math.sqrt(100 * 150)


@pytest.mark.parametrize("seed", SEEDS)
def test_images_are_uncorrelated_as_whole_vectors(seed):
    values = noise(range(200), seed).normal("z", (2000,)).double()
    products = values @ values.T / 2000
    off = products[~torch.eye(200, dtype=torch.bool)]
    assert off.abs().max() < 5.5 / math.sqrt(2000)  # 19,900 pairs: the largest is near 4.1
    assert off.var().item() * 2000 == pytest.approx(1, abs=0.06)  # 5 standard deviations over the pairs


def test_no_two_keys_of_many_share_a_stream():
    rows = [bits(noise(range(4096), purpose="evaluate", draw=draw), 3) for draw in range(32)]
    rows += [bits(noise(range(2**32, 2**32 + 4096), purpose="evaluate"), 3)]
    rows = torch.cat(rows)
    assert len(torch.unique(rows, dim=0)) == len(rows)


# ---- what is made of them


def test_another_draw_is_another_draw_of_the_same_images():
    given = noise(purpose="evaluate")
    assert torch.equal(given.with_draw(0, 1).normal("z", (3,)), given.normal("z", (3,)))
    draws = [given.with_draw(k, 4).normal("z", (3,)) for k in range(4)]
    assert all(not torch.equal(draws[0], other) for other in draws[1:])
    assert torch.equal(noise([5], purpose="evaluate").with_draw(3, 4).normal("z", (3,))[0], draws[3][5])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_keeps_the_mean_and_drops_the_share_it_is_told(seed, p):
    x = torch.full((500, 40), 3.0)
    y = noise(range(500), seed).dropout("layer", x, p)
    kept = y != 0
    torch.testing.assert_close(y[kept], torch.full_like(y[kept], 3 / (1 - p)))
    assert kept.double().mean().item() == pytest.approx(1 - p, abs=5 * math.sqrt(p * (1 - p) / 20_000))
    assert y.double().mean().item() == pytest.approx(3, abs=15 * math.sqrt(p / (1 - p) / 20_000))


def test_dropout_of_nothing_is_nothing():
    x = torch.randn(8, 3)
    assert noise(range(8)).dropout("layer", x, 0.0) is x


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_dropout_leaves_the_type_alone(dtype):
    assert noise(range(4)).dropout("layer", torch.ones(4, 6, dtype=dtype), 0.25).dtype == dtype
