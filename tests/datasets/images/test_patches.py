"""Images of any shape become patches: by a pure function of their size and position, without losing one."""

from __future__ import annotations

import io
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from datasets.config import DataConfig, PatchesConfig
from datasets.errors import DataError
from datasets.images.decode import Format, decode_image, decode_reduced
from datasets.images.patches import PLACE, Grid, PatchTransform, grid_of
from datasets.loading.build import evaluation_batches, training_batches
from datasets.loading.transforms import grids_of
from datasets.packing.encoding import encode
from datasets.shards.index import Index
from datasets.shards.indexing import index_shards
from tests.datasets.images.test_transform import ramp
from tests.datasets.small_sets import write_members

COLOUR, GREY = Format(3, 0, 0), Format(1, 0, 0)


def image_in(row: np.ndarray, patch: int, channels: int) -> np.ndarray:
    """The image uint8 [H, W, C] that a row of a batch holds."""
    place, values = row[:, :PLACE].astype(int), row[:, PLACE:].reshape(-1, patch, patch, channels)
    rows, columns = place.max(0)
    image = np.zeros((rows * patch, columns * patch, channels), np.uint8)
    for (y, x), part in zip(place - 1, values, strict=True):
        if y >= 0:
            image[y * patch : (y + 1) * patch, x * patch : (x + 1) * patch] = part
    return image


def shapes(count: int, least: int, most: int) -> list[tuple[int, int]]:
    """Heights and widths with ratios from 1:4 to 4:1 and sides of `least` to `most` pixels."""
    random = np.random.default_rng(0)
    found = []
    while len(found) < count:
        ratio, longer = math.exp(random.uniform(-1, 1) * math.log(4)), random.uniform(least, most)
        height, width = (longer, longer / ratio) if ratio > 1 else (longer * ratio, longer)
        if min(height, width) >= least:
            found.append((round(height), round(width)))
    return found


@pytest.mark.parametrize("patches", [1, 7, 64, 256])
def test_a_grid_is_the_largest_that_the_image_fills(patches):
    patch = 16
    for height, width in shapes(300, 40, 4000):
        rows, columns = grid_of(height, width, patches, patch, 1)
        assert 1 <= rows * columns <= patches
        scale = max(rows * patch / height, columns * patch / width)
        cramped = rows == 1 or columns == 1
        assert scale <= 1 + 1e-9
        left_over = scale * height - rows * patch, scale * width - columns * patch
        assert cramped or max(left_over) < patch
        # any larger scale at which another row or column fits has too many patches, or enlarges the image
        for larger in (rows + 1) * patch / height, (columns + 1) * patch / width:
            count = math.floor(larger * height / patch + 1e-9) * math.floor(larger * width / patch + 1e-9)
            assert count > patches or larger > 1 or cramped


@pytest.mark.parametrize(("patches", "share"), [(256, 0.042), (1024, 0.024)])
def test_padding_takes_a_few_percent(patches, share):
    used = [
        math.prod(grid_of(round(3000 * math.sqrt(ratio)), round(3000 / math.sqrt(ratio)), patches, 16, 1)) / patches
        for ratio in np.exp(np.linspace(-math.log(3), math.log(3), 401))
    ]
    assert 1 - np.mean(used) < share


@pytest.mark.parametrize(
    ("size", "grid"),
    [
        ((64, 64), (4, 4)),
        ((70, 60), (4, 3)),  # not enlarged
        ((16, 400), (1, 25)),
        ((3, 3), (1, 1)),  # smaller than a patch
        ((8, 40), (1, 2)),
        ((1, 9000), (1, 64)),  # more than 64 to 1
        ((9000, 1), (64, 1)),
        ((4000, 4000), (8, 8)),
    ],
)
def test_grids_of_special_sizes(size, grid):
    assert grid_of(*size, 64, 16, 1) == grid


def test_a_side_has_at_most_255_patches():
    assert grid_of(4, 40_000, 1024, 4, 1) == (1, 255)


def test_small_images_are_enlarged_if_asked_to():
    config = PatchesConfig(patches=64, patch=16, min_side=64)
    transform = PatchTransform(config, GREY, None)
    assert transform.grid(16, 32, 0) == (4, 8)
    assert transform.grid(16, 160, 0) == (2, 29)  # as far as 64 patches allow
    assert transform.grid(32, 32, 0) == (4, 4)
    assert transform.grid(64, 64, 0) == (4, 4)
    assert PatchTransform(config.model_copy(update={"min_side": 0}), GREY, None).grid(32, 32, 0) == (2, 2)


@pytest.mark.parametrize("size", [(16, 32), (24, 24), (32, 16)])
def test_whole_patches_are_the_pixels_themselves(size):
    image = ramp(*size)
    row = PatchTransform(PatchesConfig(patches=40, patch=4), COLOUR, 3)(image, 5, size)
    assert row.shape == (40, 2 + 48)
    assert np.array_equal(image_in(row, 4, 3), image)
    assert not row[size[0] * size[1] // 16 :].any()


def test_what_is_left_over_is_cropped_by_seed_and_position():
    config, image = PatchesConfig(patches=16, patch=8, flip=True), ramp(32, 37)
    first, again, other, fixed = (PatchTransform(config, COLOUR, seed) for seed in (1, 1, 2, None))
    rows = [first(image, position, (32, 37)) for position in range(60)]
    crops = {first.crop(32, 37, position) for position in range(60)}
    assert {crop[0] for crop in crops} == {0, 1, 2, 3, 4, 5}
    assert all(np.array_equal(again(image, position, (32, 37)), rows[position]) for position in reversed(range(60)))
    assert any(not np.array_equal(other(image, position, (32, 37)), rows[position]) for position in range(9))
    assert fixed.crop(32, 37, 4) == (2, 0, 34, 32)
    assert np.array_equal(image_in(fixed(image, 4, (32, 37)), 8, 3), image[:, 2:34])
    flipped = sum(image_in(row, 8, 3)[0, 0, 1] > 16 for row in rows)
    assert 15 < flipped < 45


@pytest.mark.parametrize("seed", [None, 1])
def test_a_crop_is_inside_images_of_every_size(seed):
    """With rounding errors: a side of -1e-15 ended a run."""
    transform = PatchTransform(PatchesConfig(patches=256, patch=16), COLOUR, seed)
    for height in range(19, 400, 13):
        for width in range(16, 400, 10):
            row = transform(np.zeros((height, width, 3), np.uint8), 5, (height, width))
            assert row[:, :PLACE].max(0).tolist() == list(transform.grid(height, width, 5))


def test_some_training_images_get_smaller_grids():
    config = PatchesConfig(patches=64, patch=8, smaller=0.5)
    transform = PatchTransform(config, GREY, 1)
    counts = [math.prod(transform.grid(400, 400, position)) for position in range(400)]
    assert 150 < sum(count < 64 for count in counts) < 250
    assert min(counts) == 16
    assert PatchTransform(config, GREY, None).grid(400, 400, 7) == (8, 8)


def test_binary_images_are_cropped_and_never_resampled():
    transform = PatchTransform(PatchesConfig(patches=36, patch=4), Format(1, 0, 0, levels=2), 1)
    image = (ramp(26, 25)[:, :, :1] % 2).astype(np.uint8)
    row = transform(image, 3, (26, 25))
    left, upper, *_ = map(int, transform.crop(26, 25, 3))
    assert np.array_equal(image_in(row, 4, 1), image[upper : upper + 24, left : left + 24])
    with pytest.raises(DataError, match=r"40 x 40, 10 x 10 patches of 4 pixels, and binary images cannot be resampled"):
        transform.grid(40, 40, 0)


def photograph(height: int, width: int, **options: object) -> bytes:
    """A JPEG with structure at all scales."""
    random, image = np.random.default_rng(5), np.zeros((height, width, 3))
    for octave in range(2, 9):
        noise = random.normal(0, 2.0 ** (6 - 0.6 * octave), (2**octave, 2**octave, 3))
        for channel in range(3):
            layer = Image.fromarray(noise[:, :, channel].astype(np.float32))
            image[:, :, channel] += np.asarray(layer.resize((width, height), Image.Resampling.BICUBIC))
    stream = io.BytesIO()
    Image.fromarray((image + 128).clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=90, **options)
    return stream.getvalue()


@pytest.mark.parametrize("orientation", [None, 6])
def test_jpegs_are_decoded_at_a_reduced_scale(orientation):
    exif = Image.Exif()
    if orientation:
        exif[ExifTags.Base.Orientation] = orientation
    data = photograph(700, 900, exif=exif)
    size = (900, 700) if orientation else (700, 900)
    transform = PatchTransform(PatchesConfig(patches=64, patch=16), COLOUR, 1)
    reduced, found = decode_reduced(data, "jpg", COLOUR, lambda *size: transform.least(*size, 3))
    assert found == size
    assert reduced.shape[0] < size[0] / 1.9
    whole = decode_image(data, "jpg", COLOUR)
    assert whole.shape[:2] == size
    images = [image_in(transform(image, 3, size), 16, 3).astype(float) for image in (reduced, whole)]
    error = math.sqrt(np.square(images[0] - images[1]).mean())
    assert error < 2  # of 255
    assert np.abs(images[0].mean((0, 1)) - images[1].mean((0, 1))).max() < 0.5


def test_no_image_is_reduced_below_what_is_needed():
    transform = PatchTransform(PatchesConfig(patches=64, patch=16), COLOUR, 1)
    assert (
        decode_reduced(photograph(150, 150), "jpg", COLOUR, lambda *size: transform.least(*size, 0))[0].shape[0] == 150
    )
    assert PatchTransform(PatchesConfig(patches=64, patch=16), Format(3, 0, 0, 17), 1).least(900, 900, 0) is None


# ---- sets


@pytest.fixture(scope="module")
def mixed_set(tmp_path_factory) -> Index:
    """Two shards of 90 grey images of many shapes; the first two pixels of all images are their number."""
    folder: Path = tmp_path_factory.mktemp("mixed")
    for shard in range(2):
        members = []
        for number, (height, width) in enumerate(shapes(90, 8, 40)):
            image = np.full((height, width, 1), number, np.uint8)
            image[:, :, 0] = shard * 90 + number
            members.append((f"{shard}{number:04d}.png", encode(image, "png")))
        write_members(folder / f"{shard}.tar", members)
    index_shards(str(folder), str(folder / "index"))
    return Index.open(str(folder))


def config_of(index: Index, **transform: object) -> DataConfig:
    return DataConfig(
        shards=index.url, streams=2, window=8, workers=0, transform={"patches": 16, "patch": 8, **transform}
    )


def numbers(images: np.ndarray) -> list[int]:
    return images[:, 0, PLACE].tolist()


@pytest.mark.parametrize("workers", [0, 2])
def test_every_image_is_used_once_an_epoch_by_batches_of_one_shape(mixed_set, workers):
    config = config_of(mixed_set).model_copy(update={"workers": workers})
    seen: Counter[int] = Counter()
    for rank in range(2):
        with training_batches(config, mixed_set, seed=4, batch=20, ranks=2, rank=rank) as batches:
            for _ in range(9):  # an epoch
                batch = next(batches)
                assert batch.images.shape == (10, 16, 2 + 64)
                seen.update(numbers(batch.images.numpy()[batch.weights.numpy() > 0]))
    assert seen == Counter(range(180))


def test_a_batch_has_what_the_transform_makes_of_its_images(mixed_set):
    config = config_of(mixed_set, flip=True)
    with training_batches(config, mixed_set, seed=4, batch=20) as batches:
        batch = next(batches)
    transform = PatchTransform(config.transform, mixed_set.format, 4)
    for row, position in zip(batch.images.numpy(), batch.positions.tolist(), strict=True):
        number = int(row[0, PLACE])
        size = shapes(90, 8, 40)[number % 90]
        assert np.array_equal(row, transform(np.full((*size, 1), number, np.uint8), position, size))


def test_an_evaluation_pads_its_last_batch_with_images_of_no_patch(mixed_set):
    with evaluation_batches(config_of(mixed_set), mixed_set, batch=32) as batches:
        found = list(batches)
    assert {batch.images.shape for batch in found} == {(32, 16, 66)}
    assert sum(int((batch.weights > 0).sum()) for batch in found) == 180
    assert not found[-1].images[found[-1].weights == 0].any()


def test_the_grids_of_a_set_follow_from_its_index(mixed_set):
    config = config_of(mixed_set)
    counted = grids_of(config.transform, mixed_set)
    with evaluation_batches(config, mixed_set, batch=30) as batches:
        found = Counter(Grid(*row[:, :2].amax(0).tolist()) for batch in batches for row in batch.images)
    assert counted == found
    assert sum(counted.values()) == 180


def test_a_configuration_has_a_size_or_patches():
    with pytest.raises(ValueError, match=r"transform.PatchesConfig.size\n.*Extra inputs"):
        DataConfig(shards="s", transform={"patches": 4, "patch": 2, "size": [4, 4]})
    with pytest.raises(ValueError, match=r"1 validation error.*\n.*PatchesConfig.patch\n.*required"):
        DataConfig(shards="s", transform={"patches": 4})
    with pytest.raises(ValueError, match=r"65536 patches of 64 x 64 have more than 67,108,864 pixels"):
        PatchesConfig(patches=65536, patch=64)
