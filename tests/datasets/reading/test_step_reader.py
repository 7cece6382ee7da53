"""Every byte is requested once an epoch, however the work is shared, and memory stays below its bound."""

from __future__ import annotations

import numpy as np
import pytest

from datasets.order.order import Range
from datasets.order.streams import memory_needed
from datasets.order.training_steps import TrainingSteps
from datasets.reading.step_reader import BatchArrays, ReadPlan, StepReader
from datasets.shards.index import Index
from tests.datasets.small_sets import HEIGHT, WIDTH, write_set

STREAMS, WINDOW, BATCH = 8, 12, 48
COUNTS = [60, 7, 90, 0, 45, 38, 120, 1, 77, 42]  # 480 images: ten steps an epoch


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Index:
    return write_set(tmp_path_factory.mktemp("set"), COUNTS, labels=False)


def read(reader: StepReader, steps: TrainingSteps) -> None:
    """The next step."""
    size = steps.size
    images = np.empty((size, HEIGHT, WIDTH, 1), dtype=np.uint8)
    reader.read(BatchArrays(images, np.zeros(size, dtype=np.int64), np.zeros(size, dtype=np.float32), {}))


def held(reader: StepReader) -> int:
    """Encoded bytes of the windows in memory, those being read ahead included."""
    ahead = [future.result() for _, future in reader.windows.ahead.values()]
    windows = [*reader.windows.held.values(), *ahead]
    parts = [part for window in windows for part in window.parts]
    return sum(len(part.image(row)[0]) for part in parts for row in range(len(part.extensions)))


@pytest.mark.parametrize(("order_version", "least"), [(1, 0.8), (2, 0.4)])
@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_every_byte_of_the_shards_is_read_at_most_once_per_epoch(index, ranks, order_version, least):
    """Over four epochs from the middle of one on, not counting the windows read ahead at the end."""
    total = 0
    for rank in range(ranks):
        steps = TrainingSteps(5, BATCH, STREAMS, WINDOW, ranks, rank, first=5, order_version=order_version)
        reader, order = StepReader(ReadPlan(index, steps)), steps.order(index)
        for _ in range(4 * index.images // BATCH):
            read(reader, steps)
        held(reader)  # wait for the windows being read ahead
        ahead = [window for window, _ in reader.windows.ahead.values()]
        parts = [part for window in ahead for part in order.ranges(window)]
        before = reader.shards.bytes_read
        for part in parts:
            reader.shards.read(Range(*part))
        total += before - (reader.shards.bytes_read - before)
        reader.close()
    shards = sum(index.shard(number).bytes for number in range(len(index)))
    images = sum(index.members(number).column("png.size").to_numpy().sum() for number in np.flatnonzero(index.counts))
    # A range has the headers between its images, not around them; they are large here, and ranges short in version 2.
    assert 4 * max(images, least * shards) < total <= 4 * shards


@pytest.mark.parametrize("ranks", [1, 3])
def test_encoded_bytes_in_memory_stay_below_the_bound(index, ranks):
    for rank in range(ranks):
        steps = TrainingSteps(5, BATCH, STREAMS, WINDOW, ranks, rank)
        reader = StepReader(ReadPlan(index, steps))
        most = 0
        for _ in range(3 * index.images // BATCH):
            read(reader, steps)
            most = max(most, held(reader))
        reader.close()
        assert 0 < most <= memory_needed(index, len(steps.streams_of_rank), WINDOW)
