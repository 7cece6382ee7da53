"""A reader asks for every byte once an epoch, whoever shares the work, and never holds more than it said."""

from __future__ import annotations

import numpy as np
import pytest

from datasets.order.order import Range, deal
from datasets.order.schedule import Training
from datasets.reading.reader import Reader, ReaderOptions, memory_needed
from datasets.shards.index import Index
from tests.datasets.small_sets import HEIGHT, WIDTH, write_set

STREAMS, WINDOW, BATCH = 8, 12, 48
COUNTS = [60, 7, 90, 0, 45, 38, 120, 1, 77, 42]  # 480 images: ten steps an epoch


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Index:
    return write_set(tmp_path_factory.mktemp("set"), COUNTS, labels=False)


def reader_of(index: Index, schedule: Training) -> Reader:
    return Reader(index, schedule.order(index), ReaderOptions())


def step(reader: Reader, schedule: Training, number: int) -> None:
    positions = schedule.positions(number)
    images = np.empty((len(positions), HEIGHT, WIDTH, 1), dtype=np.uint8)
    reader.read(positions, images, np.empty(len(positions), dtype=np.int64))


def held(reader: Reader) -> int:
    """The encoded bytes of the windows that a reader has, and of those that it reads ahead once they are there."""
    ahead = [future.result() for _, future in reader._ahead.values()]
    windows = [*reader._held.values(), *ahead]
    parts = [part for window in windows for part in window.parts]
    return sum(len(part.image(row)[0]) for part in parts for row in range(len(part.extensions)))


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_the_bytes_read_are_those_of_the_shards(index, ranks):
    """Over four epochs from the middle of one on, the windows read ahead at the end left out."""
    read = 0
    for rank in range(ranks):
        schedule = Training(5, BATCH, STREAMS, WINDOW, deal(STREAMS, ranks, rank), 0)
        reader, steps = reader_of(index, schedule), 4 * index.images // BATCH
        for number in range(5, 5 + steps):
            step(reader, schedule, number)
        held(reader)  # what is read ahead is there
        ahead = [window for window, _ in reader._ahead.values()]
        parts = [part for window in ahead for part in reader.order.ranges(window)]
        begun = reader.members.bytes_read
        for part in parts:
            reader.members.read(Range(*part))
        read += begun - (reader.members.bytes_read - begun)
        reader.close()
    shards = sum(index.shard(number).bytes for number in range(len(index)))
    assert 0.8 * 4 * shards < read <= 1.05 * 4 * shards  # headers lie between the images, not around a window


@pytest.mark.parametrize("ranks", [1, 3])
def test_what_is_held_stays_below_what_was_said(index, ranks):
    for rank in range(ranks):
        mine = deal(STREAMS, ranks, rank)
        schedule = Training(5, BATCH, STREAMS, WINDOW, mine, 0)
        reader = reader_of(index, schedule)
        most = 0
        for number in range(3 * index.images // BATCH):
            step(reader, schedule, number)
            most = max(most, held(reader))
        reader.close()
        assert 0 < most <= memory_needed(index, len(mine), WINDOW)
