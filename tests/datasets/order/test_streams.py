"""The number of streams with `auto`."""

from __future__ import annotations

import pytest

from datasets.config import DataConfig
from datasets.loading.build import training_batches
from datasets.order.streams import streams_of
from datasets.shards.index import Index
from jobs.config.resolved import resolve
from jobs.config.resume import fixed_settings
from jobs.config.schema import RunConfig
from tests.datasets.small_sets import write_set


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Index:
    return write_set(tmp_path_factory.mktemp("set"), [30, 30])


class Large(Index):
    """An index with more images, of a given size in bytes."""

    images = 10**9
    bytes_per_image = 0.0


def large(index: Index, size: float) -> Index:
    larger = Large([index.folders])
    larger.bytes_per_image = size
    return larger


@pytest.mark.parametrize(("batch", "streams"), [(128, 64), (20, 20), (1, 1), (254, 2), (96, 48), (7, 7), (4096, 64)])
def test_auto_is_the_largest_divisor_of_the_batch_up_to_64(index, batch, streams):
    assert streams_of(DataConfig(shards=index.url), index, batch) == streams


@pytest.mark.parametrize(("size", "streams"), [(8e3, 64), (64e3, 32), (100e3, 16), (1e6, 8), (1e9, 8)])
def test_auto_is_smaller_for_large_images(index, size, streams):
    config = DataConfig(shards=index.url)
    assert streams_of(config, large(index, size), 128) == streams
    assert streams_of(config.model_copy(update={"streams": 128}), large(index, size), 128) == 128


def test_settings_that_may_change_do_not_change_the_streams(index):
    config = DataConfig(shards=index.url, memory=1, workers=3, cache=0)
    assert streams_of(config, large(index, 100e3), 128) == streams_of(DataConfig(shards="x"), large(index, 100e3), 128)


def test_the_number_is_fixed_for_the_life_of_a_run(index):
    model = {"kind": "vae", "latent": 2, "encoder": {"kind": "mlp", "hidden": [4]}}
    model["decoder"] = model["encoder"]
    run = resolve(RunConfig.model_validate({"run": "r", "model": model, "data": {"shards": index.url}}))
    assert fixed_settings(run.config)["data.streams"] == 64


def test_a_run_reads_the_resolved_number_of_streams(index):
    with training_batches(DataConfig(shards=index.url, workers=0), index, seed=1, batch=12) as batches:
        assert "12 streams in windows" in batches.describe()
