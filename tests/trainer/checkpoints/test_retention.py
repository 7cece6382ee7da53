"""Which commits are kept: the newest, the best on the held-out set, the first at each multiple."""

from __future__ import annotations

import pytest

from trainer.checkpoints.bounds import Bounds
from trainer.checkpoints.commit import Commit
from trainer.checkpoints.retention import CheckpointConfig, kept_of


def rows(bounds, name="a"):
    return [{"images": images, "validation/nats": nats, "validation/set": name} for images, nats in bounds.items()]


def kept(bounds, **config):
    history = [Commit(images, 1) for images in range(60, 0, -10)]
    return sorted(commit.images for commit in kept_of(history, CheckpointConfig(**config), bounds))


def test_the_best_of_the_evaluated_commits_are_kept():
    bounds = Bounds(rows({10: 3.0, 20: 1.0, 25: 0.1, 40: 2.0}))  # nothing was committed at 25
    assert kept(bounds, keep_best=1) == [20, 50, 60]
    assert kept(bounds, keep_best=2) == [20, 40, 50, 60]
    assert kept(bounds, keep_best=0) == [50, 60]


def test_bounds_on_another_set_are_not_compared():
    bounds = Bounds(rows({10: 1.0, 20: 2.0}, "a"))
    bounds.add(rows({30: 9.0, 40: 8.0}, "b"))
    assert kept(bounds, keep_best=1) == [40, 50, 60]
    assert bounds.of(Commit(10, 1)) is None


def test_rows_without_a_name_of_the_set_count():
    """Those of versions before the name was recorded."""
    assert Bounds([{"images": 10, "validation/nats": 1.0}]).of(Commit(10, 1)) == 1.0


@pytest.mark.parametrize(("every", "expected"), [(0, [50, 60]), (20, [20, 40, 50, 60]), (25, [30, 50, 60])])
def test_the_first_commit_at_each_multiple_is_kept(every, expected):
    assert kept(Bounds(), keep_best=0, keep_every=every) == expected


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bound_that_is_not_finite_is_never_the_best(bad):
    bounds = Bounds(rows({10: bad, 20: 2.0, 30: bad, 40: 3.0}))
    assert kept(bounds, keep_best=1) == [20, 50, 60]
    assert kept(bounds, keep_best=4) == [20, 40, 50, 60]
