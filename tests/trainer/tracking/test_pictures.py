"""Grids of images as PNG files: their size, their values, and what a model's pictures are made of."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.trainer.models import ALL_MODELS, batch, build
from trainer.images import ImageSpec
from trainer.tracking.pictures import SIDE, draw, grid

GAP, GREY = 2, 96


def read(png):
    return np.asarray(Image.open(io.BytesIO(png)))


def levels(n, spec, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, spec.levels, (n, *spec.shape), generator=generator).to(torch.uint8)


@pytest.mark.parametrize("spec", [ImageSpec(1, 8, 8, 17), ImageSpec(3, 32, 32), ImageSpec(1, 5, 9, 2)], ids=str)
@pytest.mark.parametrize(
    ("n", "columns", "shape"),
    [(1, None, (1, 1)), (4, None, (2, 2)), (5, None, (2, 3)), (6, 6, (1, 6)), (7, 2, (4, 2)), (64, None, (8, 8))],
)
def test_every_pixel_of_the_grid_is_right(spec, n, columns, shape):
    images = levels(n, spec)
    picture = read(grid(images, spec, columns))
    factor = max(1, SIDE // max(spec.height, spec.width))
    rows, across = shape
    height, width = spec.height * factor, spec.width * factor
    assert picture.shape[:2] == (rows * (height + GAP) + GAP, across * (width + GAP) + GAP)
    assert picture.ndim == (2 if spec.channels == 1 else 3)
    expected = np.full((*picture.shape[:2], spec.channels), GREY, np.uint8)
    for i in range(n):
        y, x = (i // across) * (height + GAP) + GAP, (i % across) * (width + GAP) + GAP
        values = np.rint(images[i].numpy().astype(float) * 255 / (spec.levels - 1)).astype(np.uint8)
        expected[y : y + height, x : x + width] = values.transpose(1, 2, 0).repeat(factor, 0).repeat(factor, 1)
    assert np.array_equal(picture.reshape(expected.shape), expected)


@pytest.mark.parametrize("channels", [2, 4, 5, 12])
def test_other_numbers_of_channels_are_shown_side_by_side_in_grey(channels):
    spec = ImageSpec(channels, 48, 50)
    images = levels(2, spec)
    with Image.open(io.BytesIO(grid(images, spec, 1))) as picture:
        assert picture.mode == "L"
        values = np.asarray(picture)
    width = channels * 51 - 1
    assert values.shape == (2 * 50 + GAP, width + 2 * GAP)
    for i in range(2):
        for channel in range(channels):
            y, x = i * 50 + GAP, channel * 51 + GAP
            assert np.array_equal(values[y : y + 48, x : x + 50], images[i, channel].numpy())
            assert (values[y : y + 48, x + 50] == GREY).all()


@pytest.mark.parametrize("levels_", [2, 17, 256])
def test_the_levels_reach_from_black_to_white(levels_):
    spec = ImageSpec(1, 1, 2, levels_)
    picture = read(grid(torch.tensor([[[[0, levels_ - 1]]]], dtype=torch.uint8), spec))
    assert sorted(np.unique(picture)) == [0, GREY, 255]


@pytest.mark.parametrize(("side", "factor"), [(8, 6), (28, 1), (32, 1), (16, 3), (100, 1)])
def test_small_images_are_enlarged_by_a_whole_factor(side, factor):
    spec = ImageSpec(1, side, side, 256)
    assert read(grid(levels(1, spec), spec)).shape == (side * factor + 2 * GAP,) * 2


# ---- what a model shows


def held_out(spec, n, real=None):
    real = n if real is None else real
    weights = torch.tensor([1.0] * real + [0.0] * (n - real))
    images = batch(spec, n)
    images[real:] = spec.levels - 1  # padding, which nobody should see
    positions = torch.arange(n)
    labels = torch.zeros(n, dtype=torch.int64)
    return SimpleNamespace(images=images, conditions={"label": labels}, positions=positions, weights=weights)


@pytest.mark.parametrize("name", ALL_MODELS)
def test_every_model_shows_samples_and_reconstructions(name):
    spec, _ = ALL_MODELS[name]
    model = build(name).train()
    pictures = draw(model, held_out(spec, 6), 8, seed=0)
    assert {"samples", "reconstructions"} <= pictures.keys()
    assert model.training
    side = spec.height * (SIDE // spec.height) + GAP
    assert read(pictures["samples"]).shape[:2] == (3 * side + GAP, 3 * side + GAP)
    again = draw(model, held_out(spec, 6), 8, seed=0)
    assert again == pictures


def test_another_seed_draws_other_samples():
    model = build("vae-resnet")
    one, other = (draw(model, None, 4, seed=seed)["samples"] for seed in (0, 1))
    assert one != other


def test_reconstructions_are_next_to_their_images():
    spec, _ = ALL_MODELS["vae-mlp"]
    pictures = draw(build("vae-mlp"), held_out(spec, 6), 4, seed=0)
    picture, side = read(pictures["reconstructions"]), 48 + GAP
    shown = batch(spec, 6)[:2].numpy() * 255.0 / 16
    for i, (row, column) in enumerate(((0, 0), (1, 0))):
        corner = picture[row * side + GAP : (row + 1) * side, column * side + GAP : (column + 1) * side]
        assert np.array_equal(corner[::6, ::6], np.rint(shown[i, 0]).astype(np.uint8))


def test_without_held_out_images_there_are_samples_only():
    assert draw(build("vae-mlp"), None, 4, seed=0).keys() == {"samples"}


def test_zero_pictures_draw_nothing():
    assert draw(build("vae-mlp"), None, 0, seed=0) == {}


@pytest.mark.parametrize(("count", "size", "real"), [(1, 6, 6), (2, 6, 6), (8, 6, 1), (8, 2, 0)])
def test_few_samples_and_few_held_out_images_are_enough(count, size, real):
    """One sample leaves none for reconstructions; a small set leaves a rank with nothing but padding."""
    spec, _ = ALL_MODELS["vae-mlp"]
    pictures = draw(build("vae-mlp"), held_out(spec, size, real), count, seed=0)
    expected = {"samples"} | ({"reconstructions"} if count > 1 and real else set())
    assert pictures.keys() == expected
    if real == 1:
        assert read(pictures["reconstructions"]).shape == (50 + GAP, 2 * 50 + GAP)
