"""Calls spread over a cluster ask for what it has."""

import pytest

from jobs.ray.tasks import share


@pytest.mark.parametrize(
    ("cluster", "gpu", "expected"),
    [
        ({"CPU": 16.0, "GPU": 4.0}, True, (1, 4)),
        ({"CPU": 16.0, "GPU": 4.0}, False, (0, 16)),
        ({"CPU": 16.0}, True, (0, 16)),
        ({}, True, (0, 1)),
    ],
)
def test_a_call_has_a_gpu_where_it_wants_one_and_the_cluster_has_any(cluster, gpu, expected):
    assert share(cluster, gpu) == expected
