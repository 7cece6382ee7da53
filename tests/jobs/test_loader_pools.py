"""The loader processes of a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from datasets.loading.loader_pool import LoaderPool
from datasets.reading.step_reader import ReadPlan
from tests.testbed.jobs import call_job


def test_each_evaluation_with_its_pictures_starts_one_pool(
    config_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two evaluations in 20 steps; the pictures show images of the evaluation's first batch."""
    pools, start = [], LoaderPool.__init__

    def counted(self: LoaderPool, plan: ReadPlan, processes: int) -> None:
        pools.append((type(plan.steps).__name__, processes))
        start(self, plan, processes)

    monkeypatch.setattr(LoaderPool, "__init__", counted)
    path = config_file(data={"workers": 1, "cache": 0})
    ran = call_job("train_local", str(path))
    assert ran.status == 0, ran.stderr
    assert pools == [("TrainingSteps", 1), ("EvaluationSteps", 1), ("EvaluationSteps", 1)]
    assert len(list(path.with_suffix("").glob("pictures/reconstructions-*"))) == 2
