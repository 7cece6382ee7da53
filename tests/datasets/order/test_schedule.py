"""Looking ahead changes no place."""

from __future__ import annotations

import numpy as np
import pytest

from datasets.order.order import deal
from datasets.order.schedule import Ahead, Evaluation, Schedule, Training
from datasets.shards.index import Index
from tests.datasets.small_sets import write_set

COUNTS = [40, 25, 60, 10, 33]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    return write_set(tmp_path_factory.mktemp("set"), COUNTS, labels=False)


SCHEDULES = {
    "one reader": Training(3, 24, 6, 16, deal(6, 1, 0), 0),
    "one of four, from the middle of an epoch": Training(3, 24, 6, 16, deal(6, 4, 2), 5),
    "a batch of more than is looked for at once": Training(3, 3000, 6, 16, deal(6, 1, 0), 1),
    "evaluation": Evaluation(168, 168, 20, 2, 1),
    "every third step of an evaluation": Evaluation(168, 100, 7, 1, 0, readers=3, reader=1),
}


def same(mine: tuple[np.ndarray, ...], theirs: tuple[np.ndarray, ...]) -> bool:
    return type(mine) is type(theirs) and all(map(np.array_equal, mine, theirs))


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_the_places_of_the_steps_are_those_of_the_plan(index: Index, schedule: Schedule) -> None:
    plan = schedule.order(index)
    ahead = Ahead(plan, schedule)
    last = schedule.first + 200 if schedule.steps is None else schedule.steps
    for step in range(schedule.first, last):
        positions = schedule.positions(step)
        assert same(ahead.places(positions), plan.places(positions))
        assert same(ahead.locate(positions), plan.locate(positions))


def test_positions_of_no_next_step_are_found_too(index: Index) -> None:
    schedule = SCHEDULES["one reader"]
    plan = schedule.order(index)
    ahead = Ahead(plan, schedule)
    for step in (0, 1, 5, 1, 2, 90, 3):
        positions = schedule.positions(step)[::-1]
        assert same(ahead.places(positions), plan.places(positions))
        assert same(ahead.places(positions[::-1]), plan.places(positions[::-1]))


def test_one_search_does_for_many_steps(index: Index) -> None:
    schedule = SCHEDULES["one reader"]
    plan = schedule.order(index)
    asked = []

    class Counting:
        locate, ranges, following = plan.locate, plan.ranges, plan.following

        @staticmethod
        def places(positions):
            asked.append(len(positions))
            return plan.places(positions)

    ahead = Ahead(Counting(), schedule)
    for step in range(80):
        ahead.places(schedule.positions(step))
    assert len(asked) == 1
