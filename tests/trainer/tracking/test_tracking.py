"""W&B gets every row once, on an axis of images, over restarts; pictures lie in the run folder."""

import io
import json
import subprocess
import sys
import uuid
from collections import defaultdict

import pytest
import torch
import wandb
from PIL import Image

from cluster.storage.storage import Storage
from trainer.images import ImageSpec
from trainer.tracking.pictures import grid
from trainer.tracking.trackers import PictureFolder, TrackingConfig, WandbTracker
from trainer.training.events import Listener


@pytest.fixture(autouse=True)
def own_service():
    """What wandb keeps in this process ends with the test."""
    yield
    wandb.teardown()


def process(url, mode, images):
    """What a process does that logs rows at these image counts; what it said."""
    lines = []
    tracker = WandbTracker(Storage(url), TrackingConfig(mode=mode, project="digits"), {"seed": 3}, lines.append)
    picture = grid(torch.zeros(1, 1, 2, 2, dtype=torch.uint8), ImageSpec(1, 2, 2, 17))
    for count in images:
        row = {"images": count, "train/bpd": 5 - count / 1000, "train/rate/z1": count / 3}
        tracker.on_row(row, {"samples": picture} if count % 20 == 0 else {})
    tracker.before_commit()
    tracker.finish()
    return lines


def records(folder):
    """The records of the offline runs in a folder by their kind, those of the oldest run first."""
    found = defaultdict(list)
    for path in sorted(folder.glob("offline-run-*/*.wandb")):
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=180)
        assert done.returncode == 0, done.stderr
        for record in map(json.loads, done.stdout.splitlines()):
            found[record["type"]].append(record[record["type"]])
    return found


def figures(rows):
    return [(row["images"], row["train/bpd"], row["train/rate/z1"]) for row in rows]


def expected(*images):
    return [(count, 5 - count / 1000, count / 3) for count in images]


@pytest.fixture(params=["local", "s3"])
def url(request, tmp_path):
    if request.param == "local":
        return str(tmp_path / "run")
    return f"{request.getfixturevalue('s3_environment').bucket('tracking')}/{uuid.uuid4().hex}"


def test_an_offline_run_has_every_row_once_over_a_restart(url, tmp_path):
    lines = process(url, "auto", [10, 20, 30])  # without a key
    process(url, "offline", [20, 30, 40, 50])  # the computation of 20 and 30 again, and two new ones
    folder, run = tmp_path / "copy", Storage(url)
    for entry in run.list("wandb"):
        (folder / entry.path).parent.mkdir(parents=True, exist_ok=True)
        (folder / entry.path).write_bytes(run.read(entry.path))

    found = records(folder / "wandb")
    rows = [item["item"] for item in found["history"]]
    assert figures(rows) == expected(10, 20, 30, 40, 50)
    assert [row["images"] for row in rows if any(key.startswith("samples") for key in row)] == [20, 40]
    assert list(folder.glob("wandb/offline-run-*/files/media/images/samples*.png"))
    assert [each["run_id"] for each in found["run"]] == [run.read("wandb-id").decode()] * 2
    assert {each["project"] for each in found["run"]} == {"digits"}
    axes = [metric for metric in found["metric"] if metric.get("glob_name") == "*"]
    assert {metric["step_metric"] for metric in axes} == {"images"}
    (line,) = lines
    assert line.startswith("W&B is offline: `wandb leet ")
    assert "wandb sync" in line


def test_an_online_run_has_every_row_once_over_a_restart(tmp_path, wandb_server, monkeypatch):
    for name, value in wandb_server.environment.items():
        monkeypatch.setenv(name, value)
    url = tmp_path / "run"
    lines = process(str(url), "auto", [10, 20, 30])
    process(str(url), "online", [20, 30, 40, 50])
    (name,) = wandb_server.runs
    assert name == (url / "wandb-id").read_text()
    assert figures(wandb_server.rows(name)) == expected(10, 20, 30, 40, 50)
    assert wandb_server.unknown == []
    assert lines == [f"W&B: {wandb_server.url}/tester/digits/runs/{name}"]


@pytest.mark.parametrize("where", ["local", "s3"])
def test_pictures_lie_in_the_run_folder_by_name_and_images(where, request, tmp_path):
    url = tmp_path if where == "local" else f"{request.getfixturevalue('s3_environment').bucket('pictures')}/run"
    run = Storage(str(url))
    picture = grid(torch.full((1, 3, 2, 2), 200, dtype=torch.uint8), ImageSpec(3, 2, 2))
    folder = PictureFolder(run)
    folder.on_row({"images": 1280}, {"samples": picture, "reconstructions": picture})
    assert list(run.list("pictures")) == []  # no step waits for the store
    folder.before_commit()
    paths = [entry.path for entry in run.list("pictures")]
    assert paths == ["pictures/reconstructions-000000001280.png", "pictures/samples-000000001280.png"]
    assert run.read(paths[0]) == picture
    assert Image.open(io.BytesIO(run.read(paths[1]))).getpixel((4, 4)) == (200, 200, 200)


def test_the_tracker_of_other_ranks_takes_everything_and_does_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tracker = Listener()
    tracker.on_row({"images": 10}, {"samples": b""})
    tracker.before_commit()
    tracker.finish()
    assert list(tmp_path.iterdir()) == []
