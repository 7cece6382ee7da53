"""Calls are spread over the GPUs or cores of a cluster or of this machine."""

import pytest

from jobs.ray.tasks import place, share


@pytest.mark.parametrize(
    ("cluster", "gpu", "expected"),
    [
        ({"CPU": 16.0, "GPU": 4.0}, True, (1, 4)),
        ({"CPU": 16.0, "GPU": 4.0}, False, (0, 16)),
        ({"CPU": 16.0}, True, (0, 16)),
        ({}, True, (0, 1)),
    ],
)
def test_a_call_has_a_gpu_if_requested_and_the_cluster_has_any(cluster, gpu, expected):
    assert share(cluster, gpu) == expected


@pytest.mark.parametrize(
    ("processes", "gpus", "items", "expected"),
    [
        (None, 4, 100, [0, 1, 2, 3]),
        (None, 4, 3, [0, 1, 2]),
        (None, 1, 100, [0]),
        (2, 4, 100, [0, 1]),
        (6, 4, 100, [0, 1, 2, 3, 0, 1]),
        (None, 4, 0, [0]),
        (None, 0, 100, [None] * 16),
        (3, 0, 100, [None] * 3),
        (None, 0, 7, [None]),
        (None, 0, 9, [None] * 9),
    ],
)
def test_every_gpu_has_one_process_and_without_gpus_every_core(processes, gpus, items, expected):
    assert place(processes, gpus, 16, items) == expected
