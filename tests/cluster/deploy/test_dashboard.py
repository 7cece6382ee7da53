from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.deploy.dashboard import BOUND, MACHINE, PICTURES
from cluster.storage.storage import Storage
from datasets.shards.indexing import index_shards
from jobs.config.loading import load_config
from jobs.ray.metrics import gauge_name
from jobs.run.training import train_rank
from tests.datasets.small_sets import write_members
from tests.jobs.conftest import config_file, digits  # noqa: F401  (fixtures)
from tests.testbed.processes import REPOSITORY
from tests.testbed.wandb_server import ENTITY, WandbServer
from trainer.checkpoints.journal import read_metrics


def test_every_panel_shows_something_that_a_run_logs(
    config_file: Callable[..., Path],  # noqa: F811
    digits: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    wild = str(shutil.copytree(digits / "train", tmp_path / "wild"))
    write_members(tmp_path / "wild" / "zz.tar", [("no-image.txt", b"")])
    index_shards(wild, f"{wild}/index")
    path = config_file(data={"shards": wild, "on_bad": "quarantine"}, trainer={"peak_flops": 1e12})
    config = load_config(str(path))
    train_rank(config)
    run = Storage(config.run)
    logged = {name for row in read_metrics(run) for name in row}
    for line in (*BOUND, *MACHINE):
        assert set(line.metrics) <= logged, line
        if line.every:
            assert any(re.match(line.every, name) for name in logged), line
    drawn = {entry.path.rsplit("/", 1)[-1].rsplit("-", 1)[0] for entry in run.list("pictures")}
    assert set(PICTURES) <= drawn


def save_view(server: WandbServer, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cluster.deploy.dashboard", "--entity", ENTITY, "--project", "digits", *more],
        cwd=REPOSITORY, env={**os.environ, **server.environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_a_view_can_be_brought_up_to_date(wandb_server: WandbServer) -> None:
    made = save_view(wandb_server)
    (before,) = wandb_server.views
    wandb_server.views[0] = before | {"spec": before["spec"].replace("learning rate", "an old panel")}
    again = save_view(wandb_server, "--view", made.stdout.strip())
    assert again.stdout == made.stdout, again.stderr
    (after,) = wandb_server.views
    titles = [
        [panel["config"].get("chartTitle") for section in panels["sections"] for panel in section["panels"]]
        for panels in (json.loads(view["spec"])["section"]["panelBankConfig"] for view in (before, after))
    ]
    assert titles[0] == titles[1]
    missing = save_view(wandb_server, "--view", made.stdout.strip() + "x")
    assert missing.returncode == 1
    assert missing.stderr.splitlines()[-1].startswith("error: --view ")


def test_the_command_saves_a_view_with_all_panels_over_images(wandb_server: WandbServer) -> None:
    told = save_view(wandb_server)
    assert told.returncode == 0, told.stderr
    (view,) = wandb_server.views
    assert (view["entityName"], view["projectName"], view["displayName"]) == (ENTITY, "digits", "lowerbound")
    name = view["name"].removeprefix("nw-").removesuffix("-v")
    assert told.stdout.strip() == f"{wandb_server.url}/{ENTITY}/digits?nw={name}"
    assert wandb_server.unknown == []

    sections = {
        section["name"]: section["panels"]
        for section in json.loads(view["spec"])["section"]["panelBankConfig"]["sections"]
    }
    for title, lines in (("Bound", BOUND), ("Machine", MACHINE)):
        panels = {panel["config"]["chartTitle"]: panel["config"] for panel in sections[title]}
        assert list(panels) == [line.title for line in lines]
        for line in lines:
            panel = panels[line.title]
            assert panel["xAxis"] == "images"
            assert panel.get("metrics", []) == list(line.metrics)
            assert panel.get("metricRegex", "") == line.every
            assert (panel.get("plotType") == "stacked-area") == line.stacked
    pictures = sections["Pictures (averaged weights)"]
    assert [panel["config"]["mediaKeys"] for panel in pictures] == [[name] for name in PICTURES]


@pytest.mark.parametrize("name", ["train/rate/z1", "validation/bpd", "images_per_second"])
def test_names_of_figures_become_names_that_prometheus_allows(name: str) -> None:
    assert re.fullmatch(r"[a-zA-Z_:][a-zA-Z0-9_:]*", gauge_name(name))
