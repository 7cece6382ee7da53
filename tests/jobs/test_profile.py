"""A profile of some steps lies in the run folder when it was asked for; MFU where the peak is known."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.storage.storage import Storage
from jobs.config.loading import load_config
from jobs.run.training import train_rank
from tests.jobs.conftest import BATCH
from trainer.checkpoints.export import load
from trainer.checkpoints.journal import read_metrics
from trainer.tracking.flops import measure
from trainer.tracking.profiling import WARM_UP


@pytest.mark.parametrize("where", ["local", "s3"])
def test_the_trace_holds_the_steps_that_were_asked_for(
    where: str, config_file: Callable[..., Path], request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(config_file(trainer={"profile": 3}))
    store = [f"run={request.getfixturevalue('s3_environment').bucket('profiles')}/run"] if where == "s3" else []
    config = load_config(path, store)
    train_rank(config)
    run = Storage(config.run)
    (entry,) = run.list("profiles")
    assert entry.path == f"profiles/{(WARM_UP + 3) * BATCH:012d}.json.gz"
    assert f"profile: {run.url}/{entry.path}" in capsys.readouterr().out
    events = json.loads(gzip.decompress(run.read(entry.path)))["traceEvents"]
    names = [event.get("name", "") for event in events]
    assert sum(name.startswith("ProfilerStep") for name in names) == 3
    assert {"aten::addmm", "Optimizer.step#AdamW.step"} <= set(names)


def test_a_run_logs_its_model_flops_utilisation_where_the_peak_is_known(config_file: Callable[..., Path]) -> None:
    peak = 1e12
    config = load_config(str(config_file()), [f"trainer.peak_flops={peak}"])
    train_rank(config)
    import torch

    flops = measure(load(config.run), torch.float32).flops
    rows = [row for row in read_metrics(Storage(config.run)) if "train/lr" in row]
    assert rows
    for row in rows:
        assert row["images_per_second_per_device"] == row["images_per_second"]
        assert row["mfu"] == pytest.approx(flops * row["images_per_second"] / peak, rel=1e-9)
        assert row["restarts"] == 0
    assert any(row["checkpoint_stall"] > 0 for row in rows)
    assert not list(Storage(config.run).list("profiles"))
