"""A short selection of the matrix: one kill of each kind, one request to stop, damage, a full disk."""

from __future__ import annotations

import pytest

from tests.chaos.matrix import MOMENTS, Bench
from tests.jobs.conftest import digits  # noqa: F401  (a fixture)


@pytest.fixture(scope="module")
def bench(tmp_path_factory, digits):  # noqa: F811
    return Bench(tmp_path_factory.mktemp("chaos"), digits)


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_ends_as_if_nothing_had_happened(bench, moment):
    assert bench.kills(1, (moment,), runs=1, each=1).wrong == []


def test_two_ranks_of_which_one_is_killed_end_as_if_nothing_had_happened(bench):
    assert bench.kills(2, ("upload", "step"), runs=1, each=2).wrong == []


def test_a_request_to_stop_loses_nothing(bench):
    result = bench.terminations(2, runs=1, each=1)
    assert result.injected == 1
    assert result.wrong == []


@pytest.mark.parametrize("how", ["flipped byte", "truncated file"])
def test_a_damaged_checkpoint_is_passed_over(bench, how):
    assert bench.damage(1, how).wrong == []


def test_a_full_disk_costs_the_checkpoint_and_not_the_run(bench):
    assert bench.full_disk(1).wrong == []
