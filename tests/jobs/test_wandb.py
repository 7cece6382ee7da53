"""A run and its W&B run: every row of the run's metrics is there, offline, synced and online; the key is nowhere."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb

from cluster.storage.storage import Storage
from jobs.config.loading import load_config
from jobs.run.trackers import trackers
from jobs.run.training import train_rank
from tests.jobs.conftest import BATCH
from tests.testbed.wandb_server import WandbServer
from trainer.checkpoints.journal import read_metrics
from trainer.tracking.trackers import WandbTracker


def figures(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The numbers of rows, without W&B's own: "_step", "samples.width" ..."""
    return [
        {name: value for name, value in row.items() if isinstance(value, int | float) and not re.search(r"^_|\.", name)}
        for row in rows
    ]


@pytest.fixture
def own_service() -> Iterator[None]:
    """What wandb keeps in this process ends with the test."""
    yield
    wandb.teardown()


def tool(*arguments: str, cwd: Path, env: dict[str, str]) -> str:
    command = [sys.executable, "-m", "wandb", *arguments]
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_wandb_rows_equal_the_metrics_offline_synced_and_online_and_the_key_leaks_nowhere(
    config_file: Callable[..., Path],
    wandb_server: WandbServer,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    own_service: None,
) -> None:
    path = str(config_file(tracking={"mode": "auto", "project": "digits"}))
    run = Path(load_config(path).run)
    key = wandb_server.environment["WANDB_API_KEY"]

    train_rank(load_config(path, [f"trainer.images={10 * BATCH}"]))  # there is no key: offline
    (folder,) = run.glob("wandb/offline-run-*")
    (log,) = folder.glob("*.wandb")
    records = map(json.loads, tool("leet", "inspect", "--json", str(log), cwd=run, env={}).splitlines())
    history = [record["history"]["item"] for record in records if record["type"] == "history"]
    assert figures(history) == figures(read_metrics(Storage(str(run))))
    assert len(history) == 6

    name = (run / "wandb-id").read_text()
    said = tool("sync", str(folder), cwd=run, env=wandb_server.environment)
    assert figures(wandb_server.rows(name)) == figures(history)

    wandb.teardown()
    for variable, value in wandb_server.environment.items():
        monkeypatch.setenv(variable, value)
    capfd.readouterr()
    train_rank(load_config(path))  # the same run goes on, with a key
    online = "".join(capfd.readouterr())
    assert f"W&B: {wandb_server.url}/tester/digits/runs/{name}" in online
    rows = read_metrics(Storage(str(run)))
    assert len(rows) == 12
    assert figures(wandb_server.rows(name)) == figures(rows)
    assert list(wandb_server.runs) == [name]

    texts = [said, online, wandb_server.runs[name].config]
    assert not [text for text in texts if key in text]
    files = [file for file in run.rglob("*") if file.is_file()]
    assert len(files) > 10
    assert not [file for file in files if key.encode() in file.read_bytes()]


@pytest.mark.parametrize(
    ("mode", "variable", "wanted"),
    [("auto", "disabled", False), ("auto", "offline", True), ("offline", "disabled", True), ("off", "online", False)],
)
def test_wandb_is_not_started_where_the_environment_disables_it(
    config_file: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    own_service: None,
    mode: str,
    variable: str,
    wanted: bool,
) -> None:
    monkeypatch.setenv("WANDB_MODE", variable)
    config = load_config(str(config_file(tracking={"mode": mode})))
    found = trackers(config, Storage(config.run))
    assert [isinstance(tracker, WandbTracker) for tracker in found] == [False, True][: 1 + wanted]
    for tracker in found:
        tracker.finish()
    assert (Path(config.run) / "wandb").exists() == wanted
