from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.dashboard import BOUND, MACHINE, PICTURES, workspace
from cluster.storage import Storage
from jobs.config import load_config
from jobs.ray_metrics import gauge_name
from jobs.worker import work
from tests.jobs.conftest import config_file, digits  # noqa: F401  (fixtures)
from trainer.journal import read_metrics


def test_every_panel_shows_something_that_a_run_logs(config_file: Callable[..., Path]) -> None:  # noqa: F811
    config = load_config(str(config_file()))
    work(config)
    run = Storage(config.run)
    logged = {name for row in read_metrics(run) for name in row}
    for line in (*BOUND, *MACHINE):
        assert set(line.metrics) <= logged, line
        if line.every:
            assert any(re.match(line.every, name) for name in logged), line
    drawn = {entry.path.rsplit("/", 1)[-1].rsplit("-", 1)[0] for entry in run.list("pictures")}
    assert set(PICTURES) <= drawn


def test_the_view_holds_all_panels_over_images() -> None:
    pytest.importorskip("wandb_workspaces")
    view = workspace("someone", "lowerbound")
    spec = json.loads(view._to_model().spec.model_dump_json(by_alias=True))
    text = json.dumps(spec)
    for line in (*BOUND, *MACHINE):
        assert line.title in text
    assert [section.name for section in view.sections] == ["Bound", "Pictures (averaged weights)", "Machine"]
    assert all(panel.x == "images" for section in (view.sections[0], view.sections[2]) for panel in section.panels)


@pytest.mark.parametrize("name", ["train/rate/z1", "validation/bpd", "images_per_second"])
def test_names_of_figures_become_names_that_prometheus_allows(name: str) -> None:
    assert re.fullmatch(r"[a-zA-Z_:][a-zA-Z0-9_:]*", gauge_name(name))
