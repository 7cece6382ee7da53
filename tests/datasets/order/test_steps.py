"""Steps are looked up in blocks, each position once, and loader processes share the rows of a batch."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from datasets.order.evaluation_steps import EvaluationSteps
from datasets.order.order import Integers, Places
from datasets.order.steps import Steps, look_up
from datasets.order.training_steps import TrainingSteps
from datasets.shards.index import Index
from tests.datasets.small_sets import write_set

COUNTS = [40, 25, 60, 10, 33]
IMAGES = sum(COUNTS)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    return write_set(tmp_path_factory.mktemp("set"), COUNTS, labels=False)


STEPS = {
    "one reader": TrainingSteps(3, 24, 6, 16),
    "one rank of four, from the middle of an epoch": TrainingSteps(3, 24, 6, 16, ranks=4, rank=2, first=5),
    "one of two loader processes": TrainingSteps(3, 24, 6, 16, readers=2, reader=1),
    "a batch of more than is looked up at once": TrainingSteps(3, 3000, 6, 16, first=1),
    "two sets": TrainingSteps(3, 24, 6, 16, weights=(1, 2)),
    "evaluation": EvaluationSteps(IMAGES, IMAGES, 20, 2, 1),
    "every third step of an evaluation": EvaluationSteps(IMAGES, 100, 7, readers=3, reader=1),
}


@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
def test_each_step_has_the_places_of_the_order(index: Index, steps: Steps) -> None:
    if isinstance(steps, TrainingSteps) and len(steps.weights) == 2:
        index = Index([index._sets[0], index._sets[0]])
    order, number, most = steps.order(index), steps.first, 10 if steps.size > 2048 else 200
    for share, places in islice(look_up(steps, order), most):
        wanted = steps.share(number)
        assert np.array_equal(share.positions, wanted.positions)
        assert np.array_equal(share.rows, wanted.rows)
        assert share.padding == wanted.padding
        assert all(map(np.array_equal, places, order.places(wanted.positions)))
        number += 1
    assert number == (steps.first + most if steps.end is None else steps.end)


def test_each_position_is_looked_up_once_and_many_together(index: Index) -> None:
    steps = STEPS["one reader"]
    order, asked = steps.order(index), []

    class Counting:
        locate, ranges, following = order.locate, order.ranges, order.following

        @staticmethod
        def places(positions: Integers) -> Places:
            asked.append(positions)
            return order.places(positions)

    taken = list(islice(look_up(steps, Counting()), 127 + 85))
    assert [len(positions) // 24 for positions in asked] == [1, 2, 4, 8, 16, 32, 64, 85]
    assert np.concatenate(asked).tolist() == [p for share, _ in taken for p in share.positions]


@pytest.mark.parametrize("readers", [1, 2, 5])
@pytest.mark.parametrize(
    "steps",
    [
        TrainingSteps(3, 40, 10, 16, ranks=2, rank=1, micro_batch=7),
        TrainingSteps(3, 15, 5, 16),
        EvaluationSteps(IMAGES, IMAGES, 9, 4, 3),
        EvaluationSteps(50, 50, 30, 3, 2),
    ],
)
def test_loader_processes_write_each_row_of_a_batch_once(steps: Steps, readers: int) -> None:
    for step in range(steps.first, 12 if steps.end is None else steps.end):
        whole, written = steps.share(step), np.zeros(steps.size, dtype=int)
        for reader in steps.split(readers):
            share = reader.share(step)
            assert np.array_equal(share.positions, whole.positions[share.rows]), "in the row of the rank's batch"
            written[share.rows] += 1
            written[share.padding] += 1
        assert written.tolist() == [1] * steps.size


def test_rows_are_padded_to_a_multiple_of_the_micro_batch() -> None:
    sizes = [TrainingSteps(3, 40, 10, 16, ranks=3, rank=rank, micro_batch=7).size for rank in range(3)]
    assert sizes == [21] * 3  # the largest share is 16 images
