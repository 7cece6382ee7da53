"""Crops, sizes and flips depend on the position, not on the process that reads."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from datasets.config import DataConfig, TransformConfig
from datasets.errors import DataError
from datasets.images.decode import Format, decode_image, read_header
from datasets.images.transform import Transform
from datasets.loading.build import evaluation_batches, training_batches
from datasets.loading.transforms import output_format
from datasets.shards.index import Index
from datasets.shards.indexing import index_shards
from tests.datasets.images.test_decode import encoded
from tests.datasets.small_sets import image_of, write_members, write_set

ANY = Format(3, 0, 0)


def ramp(height: int, width: int) -> np.ndarray:
    """An image whose pixel values are their coordinates."""
    y, x = np.mgrid[:height, :width]
    return np.stack([y, x, y + x], axis=2).astype(np.uint8)


@pytest.mark.parametrize("size", [(32, 32), (64, 48), (224, 224), (17, 31)])
@pytest.mark.parametrize("seed", [None, 1])
def test_a_crop_is_inside_images_of_every_size(size, seed):
    """With rounding errors: a side of -1e-15 ended a run."""
    config = TransformConfig(size=size, crop="centre" if seed is None else "random")
    transform = Transform(config, ANY, seed)
    for height in range(16, 300, 13):
        for width in range(16, 300, 7):
            assert transform(np.zeros((height, width, 3), np.uint8), 5).shape == (*size, 3)


def test_a_centre_crop_of_the_same_size_is_not_resampled():
    image = ramp(10, 30)
    out = Transform(TransformConfig(size=(10, 10)), ANY, None)(image, 0)
    assert np.array_equal(out, image[:, 10:20])


def test_the_centre_crop_is_resized():
    out = Transform(TransformConfig(size=(8, 8)), ANY, None)(np.full((40, 90, 3), 77, dtype=np.uint8), 0)
    assert out.shape == (8, 8, 3)
    assert (out == 77).all()
    wide = Transform(TransformConfig(size=(16, 32), crop="none"), ANY, None)(ramp(64, 64), 0)
    assert wide.shape == (16, 32, 3)
    assert abs(int(wide[8, 16, 0]) - 34) <= 2


def test_random_crops_depend_only_on_seed_and_position():
    config = TransformConfig(size=(8, 8), crop="random", scale=(0.3, 1.0), flip=True)
    image = ramp(50, 70)
    first, again, other = (Transform(config, ANY, seed) for seed in (1, 1, 2))
    outs = [first(image, position) for position in range(50)]
    assert all(np.array_equal(again(image, position), outs[position]) for position in reversed(range(50)))
    assert len({out.tobytes() for out in outs}) == 50
    assert not np.array_equal(other(image, 3), outs[3])


def test_half_of_the_images_are_flipped():
    transform = Transform(TransformConfig(size=(4, 6), flip=True), Format(1, 4, 6), 1)
    image = image_of(1)
    outs = [transform(image, position) for position in range(1000)]
    flipped = sum(np.array_equal(out, image[:, ::-1]) for out in outs)
    assert flipped + sum(np.array_equal(out, image) for out in outs) == 1000
    assert abs(flipped - 500) < 5 * np.sqrt(250)


@pytest.mark.parametrize("settings", [{"cache": 0}, {"cache": "1MiB"}, {"workers": 2, "cache": 0}])
def test_batches_have_the_transformed_images_for_every_way_of_reading(tmp_path, settings):
    index = write_set(tmp_path, [20, 20])
    transform = TransformConfig(size=(3, 3), crop="random", flip=True)
    config = DataConfig(shards=index.url, streams=2, transform=transform, **{"workers": 0, **settings})
    plain = config.model_copy(update={"transform": None})
    wanted = Transform(transform, index.format, 9)
    with (
        training_batches(config, index, seed=9, batch=16) as ours,
        training_batches(plain, index, seed=9, batch=16) as raw,
    ):
        for _ in range(6):
            batch, untouched = next(ours), next(raw)
            for image, source, position in zip(batch.images, untouched.images, batch.positions, strict=True):
                pixels = source.permute(1, 2, 0).numpy()
                assert np.array_equal(image.permute(1, 2, 0).numpy(), wanted(pixels, int(position)))


def test_images_of_different_sizes_are_resized_to_one(tmp_path):
    sizes = [(20, 30), (40, 10), (9, 9)]
    members = [(f"{i}.png", encoded(ramp(*size), "PNG")) for i, size in enumerate(sizes)]
    write_members(tmp_path / "0.tar", members)
    index_shards(str(tmp_path), str(tmp_path / "index"))
    index = Index.open(str(tmp_path))
    config = DataConfig(shards=str(tmp_path), workers=0)
    with pytest.raises(DataError, match=r"images differ in size, here or between shards; set data\.transform\.size"):
        evaluation_batches(config, index, batch=3)
    config = config.model_copy(update={"transform": TransformConfig(size=(8, 8))})
    assert output_format(config, index).shape == (8, 8, 3)
    with evaluation_batches(config, index, batch=3) as batches:
        assert next(batches).images.shape == (3, 3, 8, 8)


@pytest.mark.parametrize("config", [{"size": (8, 8), "crop": "random"}, {"size": (4, 4)}, {"size": (13, 11)}])
def test_resampled_images_have_no_levels_beyond_their_own(config):
    edges = np.kron(np.random.default_rng(0).integers(0, 2, (4, 4, 1)) * 16, np.ones((2, 2, 1))).astype(np.uint8)
    transform = Transform(TransformConfig(**config), Format(1, 8, 8, levels=17), 1)
    outs = np.stack([transform(edges, position) for position in range(200)])
    assert outs.max() == 16
    assert len(np.unique(outs)) > 2  # they were resampled


@pytest.mark.parametrize(
    ("config", "random", "refused"),
    [
        ({"size": (8, 8), "crop": "random"}, True, True),
        ({"size": (8, 8), "crop": "random"}, False, False),
        ({"size": (4, 4)}, False, True),
        ({"size": (8, 4), "crop": "none"}, False, True),
        ({"size": (8, 8), "crop": "none", "flip": True}, True, False),
        ({"size": (8, 4)}, True, False),  # whole columns
        ({"size": (8, 4), "crop": "random", "scale": (1, 1)}, True, False),
    ],
)
def test_binary_images_are_cropped_and_flipped_but_not_resampled(config, random, refused):
    config, format = TransformConfig(**config), Format(1, 8, 8, levels=2)
    seed = 3 if random else None
    if refused:
        with pytest.raises(DataError, match=r"binary images cannot be resampled.*size: \[8, 8\] without crop: random"):
            Transform(config, format, seed)
        return
    image = np.random.default_rng(0).integers(0, 2, (8, 8, 1), dtype=np.uint8)
    transform = Transform(config, format, seed)
    assert all(transform(image, position).max() == 1 for position in range(50))


@pytest.mark.parametrize("size", [(100_000, 100_000), (0, 5), (-3, 4)])
def test_sizes_that_no_image_can_have_are_refused(size):
    with pytest.raises(ValueError, match=f"{size[0]} x {size[1]} is not a size between 1 and 67,108,864 pixels"):
        TransformConfig(size=size)


def test_exif_orientation_rotates_the_image_and_its_size(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = np.repeat(np.repeat(np.arange(0, 250, 50, dtype=np.uint8), 8)[:, None], 16, 1)
    sideways = encoded(np.rot90(upright), "JPEG", exif=exif.tobytes(), quality=95)
    assert read_header(sideways, "jpg")[:3] == (40, 16, 1)
    decoded = decode_image(sideways, "jpg", Format(1, 40, 16))
    assert np.abs(decoded[:, :, 0].astype(int) - upright).max() < 6


@pytest.mark.parametrize("quality", [50, 75, 95])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_the_fast_decoder_gives_the_same_pixels_as_pillow(quality, subsampling):
    image = np.kron(np.random.default_rng(0).integers(0, 256, (8, 9, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    data = encoded(image, "JPEG", quality=quality, subsampling=subsampling)
    theirs = np.asarray(Image.open(io.BytesIO(data)))
    assert np.array_equal(decode_image(data, "jpg", Format(3, 64, 72)), theirs)
