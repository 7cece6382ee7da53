"""A short selection of the matrix under Ray, on three hosts in network namespaces."""

from __future__ import annotations

import signal

import pytest

from cluster.local import namespaces
from tests.chaos.matrix import MOMENTS, Bench
from tests.chaos.ray_bed import RayBed
from tests.chaos.ray_matrix import FIXED, RayBench
from tests.jobs.conftest import digits  # noqa: F401  (a fixture)

pytestmark = [pytest.mark.slow, pytest.mark.ray]


@pytest.fixture(scope="module")
def bench(only_ray, tmp_path_factory, digits):  # noqa: F811
    if not namespaces.available():
        pytest.skip("network namespaces cannot be had here")
    if namespaces.left():
        pytest.skip("a local cluster is up on this machine already")
    with RayBed() as bed:
        yield RayBench(Bench(tmp_path_factory.mktemp("chaos"), digits), bed)


def test_a_job_whose_workers_are_killed_ends_as_if_nothing_had_happened(bench):
    result = bench.kills(FIXED, MOMENTS, runs=1, each=2)
    assert result.injected == 2
    assert result.wrong == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_driver_that_is_ended_and_started_again_goes_on(bench, number):
    assert bench.driver(FIXED, number, runs=1, each=1).wrong == []


def test_a_drained_host_costs_no_image(bench):
    assert bench.drained_host(1).wrong == []


@pytest.mark.parametrize("cut", [True, False], ids=["its link cut", "killed"])
def test_a_host_that_is_lost_leaves_the_run_with_the_others(bench, cut):
    assert bench.lost_host(cut, runs=1).wrong == []
