"""For any history of stops and rank counts, every image is seen once per epoch and the batches are the same."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datasets.config import DataConfig
from datasets.loading.build import training_batches
from datasets.order.training_steps import TrainingSteps
from datasets.reading.step_reader import BatchArrays, ReadPlan, StepReader
from datasets.shards.index import Index
from tests.datasets.small_sets import HEIGHT, WIDTH, number_of, write_set


@st.composite
def runs(draw: st.DrawFn) -> dict:
    """A set, a configuration, and what happened: (steps, ranks, loader processes per rank) between stops."""
    streams = draw(st.integers(1, 6))
    history = draw(
        st.lists(st.tuples(st.integers(1, 6), st.integers(1, streams), st.integers(1, 3)), min_size=1, max_size=5)
    )
    return {
        "counts": draw(st.lists(st.integers(0, 12), min_size=1, max_size=6).filter(any)),
        "streams": streams,
        "batch": streams * draw(st.integers(1, 3)),
        "window": draw(st.integers(1, 20)),
        "seed": draw(st.integers(0, 2**32)),
        "history": history,
    }


def read(index: Index, steps: TrainingSteps, workers: int, count: int) -> list[list[tuple[int, int]]]:
    """(position, number of the image) of a rank's share of `count` steps, read as its loader processes would."""
    size = steps.size
    images = np.empty((size, HEIGHT, WIDTH, 1), dtype=np.uint8)
    batch = BatchArrays(images, np.full(size, -1, dtype=np.int64), np.zeros(size, dtype=np.float32), {})
    readers = [StepReader(plan) for plan in ReadPlan(index, steps).split(min(workers, steps.max_readers))]
    shares = []
    for _ in range(count):
        batch.weights[:] = 0
        for reader in readers:
            reader.read(batch)
        shares.append([(int(batch.positions[row]), number_of(images[row])) for row in np.flatnonzero(batch.weights)])
    for reader in readers:
        reader.close()
    return shares


@pytest.mark.parametrize("order_version", [1, 2])
@given(runs())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_every_image_is_seen_exactly_once_per_epoch_in_the_same_batches_for_any_history(order_version, run):
    with tempfile.TemporaryDirectory() as folder:
        index = write_set(Path(folder) / "set", run["counts"])
        order = run["seed"], run["batch"], run["streams"], run["window"]
        batches: list[list[tuple[int, int]]] = []
        for steps, ranks, workers in run["history"]:
            first = len(batches)
            parts = [TrainingSteps(*order, ranks, rank, first, order_version=order_version) for rank in range(ranks)]
            shares = [read(index, part, workers, steps) for part in parts]
            batches += [sorted(pair for share in step for pair in share) for step in zip(*shares, strict=True)]
        config = DataConfig(shards=folder + "/set", streams=run["streams"], window=run["window"], workers=0)
        with training_batches(
            config, index, seed=run["seed"], batch=run["batch"], order_version=order_version
        ) as straight:
            for batch in batches:
                images = next(straight).images.numpy()
                first = batch[0][0]
                assert batch == [(first + i, number_of(image)) for i, image in enumerate(images)]
    check_epochs([number for batch in batches for _, number in batch], sum(run["counts"]))


def check_epochs(numbers: list[int], images: int) -> None:
    """Complete epochs have every image once; the last, incomplete one has none twice."""
    for start in range(0, len(numbers), images):
        epoch = Counter(numbers[start : start + images])
        assert max(epoch.values()) == 1
        assert len(epoch) == images or start + images > len(numbers)
