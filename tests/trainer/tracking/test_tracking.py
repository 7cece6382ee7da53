"""W&B gets every row once, on an axis of images, over restarts; pictures are stored in the run folder."""

import io
import json
import subprocess
import sys
import time
import uuid
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
import wandb
from PIL import Image

import trainer.tracking.wandb_run
from cluster.storage.storage import Storage
from trainer.images import ImageSpec
from trainer.tracking.listener import Listener
from trainer.tracking.pictures import grid
from trainer.tracking.plots import bars
from trainer.tracking.trackers import PictureFolder, WandbTracker, lacks_rows, send_report
from trainer.tracking.wandb_rows import BEFORE_ALL, last_place_in_log, logs, place
from trainer.tracking.wandb_run import GROWTH, TrackingConfig, WandbRun


@pytest.fixture(autouse=True)
def own_service():
    """The service of wandb in this process ends with the test."""
    yield
    wandb.teardown()


def process(url, mode, images):
    """Log rows at these image counts as one process of a run; the printed lines."""
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
    assert line.startswith("W&B is offline: `")
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
def test_pictures_are_stored_in_the_run_folder_by_name_and_images(where, request, tmp_path):
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


def test_the_null_listener_does_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tracker = Listener()
    tracker.on_row({"images": 10}, {"samples": b""})
    tracker.before_commit()
    tracker.finish()
    assert list(tmp_path.iterdir()) == []


# ---- rollbacks, and rows at the same image count


def log(url, mode, rows):
    """A process that logs these rows, given as (rollbacks, images) and with True at the end for an evaluation."""
    lines = []
    tracker = WandbTracker(Storage(url), TrackingConfig(mode=mode), {}, lines.append)
    for rollbacks, images, *evaluation in rows:
        row = {"images": images, "rollbacks": rollbacks}
        tracker.on_row(
            row | ({"evaluation/seconds": 1.0, "validation/bpd": 3.0} if evaluation else {"train/bpd": 4.0}), {}
        )
    tracker.finish()
    return lines


def places(rows):
    return [(row["rollbacks"], row["images"], *([True] if "evaluation/seconds" in row else [])) for row in rows]


@pytest.fixture(params=["offline", "online"])
def mode(request, wandb_server, monkeypatch):
    if request.param == "online":
        for name, value in wandb_server.environment.items():
            monkeypatch.setenv(name, value)
    return request.param


def test_every_row_is_sent_once_over_rollbacks_restarts_and_evaluations(mode, tmp_path, wandb_server):
    run = tmp_path / "run"
    first = [(0, 10), (0, 20), (0, 20, True), (0, 30), (0, 40), (1, 20), (1, 20, True), (1, 30)]  # back from 40
    log(str(run), mode, first)
    again = [(1, 20), (1, 20, True), (1, 30), (1, 30, True), (1, 40)]  # restarted from 10; the evaluation was missing
    log(str(run), mode, again)
    log(str(run), mode, [(1, 40), (1, 40, True)])
    if mode == "online":
        rows = wandb_server.rows((run / "wandb-id").read_text())
    else:
        rows = [item["item"] for item in records(run / "wandb")["history"]]
    assert places(rows) == [*first, (1, 30, True), (1, 40), (1, 40, True)]


def test_rows_of_runs_that_did_not_count_rollbacks_have_a_place():
    assert place({"images": 30}) > place({"images": 20, "rollbacks": 0, "evaluation/seconds": 2.0})
    assert place({"images": 20, "rollbacks": 1}) > place({"images": 30})
    assert place({"_step": 3}) == BEFORE_ALL < place({"images": 0})


def test_the_logs_of_a_run_are_those_with_its_id_the_newest_first():
    names = [
        "wandb/offline-run-20260101_000000-abc/run-abc.wandb",
        "wandb/run-20260301_000000-abc/run-abc.wandb",
        "wandb/offline-run-20260201_000000-abc/run-abc.wandb",
        "wandb/offline-run-20260401_000000-abc-validation-elbo/run-abc-validation-elbo.wandb",
        "wandb/offline-run-20260201_000000-abc/files/output.log",
    ]
    assert logs(names, "abc") == [names[1], names[2], names[0]]


def test_the_logs_of_one_second_are_in_the_order_of_their_numbers():
    names = [f"wandb/offline-run-20260101_000000-abc{number}/run-abc.wandb" for number in ("", "-1", "-2", "-10")]
    assert logs(names, "abc") == names[::-1]


def test_processes_that_start_in_one_second_send_every_row_once(tmp_path, monkeypatch):
    stands = time.time()
    clock = SimpleNamespace(**vars(time) | {"time": lambda: stands})
    monkeypatch.setattr("wandb.sdk.wandb_init.time", clock)
    for rows in ([(0, 10), (0, 20)], [(0, 20), (0, 30)], [(0, 30), (0, 40)]):
        log(str(tmp_path), "offline", rows)
    folders = sorted(path.name for path in tmp_path.glob("wandb/offline-run-*"))
    assert [name.rpartition("-")[2] for name in folders[1:]] == ["1", "2"]
    assert places(item["item"] for item in records(tmp_path / "wandb")["history"]) == [(0, n) for n in (10, 20, 30, 40)]


def test_a_log_that_was_cut_off_gives_the_rows_before(tmp_path):
    log(str(tmp_path), "offline", [(0, count) for count in range(10, 1000, 10)])
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert last_place_in_log(path).images == 990
    whole = path.read_bytes()
    path.write_bytes(whole[:-2000])
    assert 10 < last_place_in_log(path).images < 990
    path.write_bytes(whole[:3])
    assert last_place_in_log(path) == BEFORE_ALL


# ---- failures of W&B


def test_a_failure_leaves_no_gap_and_is_marked(tmp_path, wandb_server, monkeypatch):
    for name, value in wandb_server.environment.items():
        monkeypatch.setenv(name, value)
    lines = []
    tracker = WandbTracker(Storage(str(tmp_path)), TrackingConfig(mode="online"), {}, lines.append)
    tracker.on_row({"images": 10, "rollbacks": 0}, {})
    tracker.on_row({"images": 20, "rollbacks": 0}, {"samples": b"no PNG"})  # an error in the midst of logging
    tracker.on_row({"images": 30, "rollbacks": 0}, {})
    tracker.finish()
    assert [row["images"] for row in wandb_server.rows(tracker.wandb.id)] == [10]
    assert lacks_rows(Storage(str(tmp_path)))
    assert [line for line in lines if line.startswith("W&B fails (") and "training continues" in line]


def test_an_error_at_the_end_is_reported_and_not_raised(tmp_path, monkeypatch):
    lines = []
    tracker = WandbTracker(Storage(str(tmp_path)), TrackingConfig(mode="offline"), {}, lines.append)

    def fail():
        raise RuntimeError("broken\npipe")

    monkeypatch.setattr(tracker.wandb.wandb, "finish", fail)
    tracker.finish()
    assert "W&B fails (broken pipe); training continues; missing rows are re-sent on resume" in lines


# ---- the files of an offline run in an object store


class Counting(Storage):
    """A folder that is used like a store, and counts the bytes that are written to it."""

    def __init__(self, url):
        super().__init__(url)
        self.written = defaultdict(list)

    def local_path(self, path=""):
        return None

    def write(self, path, content):
        super().write(path, content)
        self.written[path].append(len(content) if isinstance(content, bytes) else content.stat().st_size)


def test_only_files_that_have_changed_are_stored_again(tmp_path):
    run = Counting(str(tmp_path / "run"))
    tracked = WandbRun(run, TrackingConfig(mode="offline"), print, "abc")
    folder = tracked.folder / "wandb" / "offline-run"
    folder.mkdir()
    commits, line = 60, b"x" * 1000
    for commit in range(commits):
        (folder / f"{commit}.png").write_bytes(line)
        with (folder / "log").open("ab") as growing:
            growing.write(line)
        tracked.store_files()
    tracked.finish()
    sizes = run.written.pop("wandb/offline-run/log")
    assert sizes[-1] == commits * len(line)  # complete at the end
    assert sum(sizes[:-1]) <= sizes[-2] / (1 - 1 / GROWTH)  # a geometric series, not a quadratic sum
    assert [run.written[f"wandb/offline-run/{commit}.png"] for commit in range(commits)] == [[1000]] * commits


# ---- reports


def test_a_report_has_a_run_of_its_own_and_leaves_a_live_run_alone(tmp_path, wandb_server, monkeypatch):
    for name, value in wandb_server.environment.items():
        monkeypatch.setenv(name, value)
    run, tracking = Storage(str(tmp_path / "mnist")), TrackingConfig(mode="online")
    live = subprocess.Popen(
        [sys.executable, "-c", LIVE, run.url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert live.stdout.readline() == "logged\n"
    training = wandb_server.runs[run.read("wandb-id").decode()]
    facts = {"split": "validation", "precision": "fp32", "images_seen": 20}
    plot = bars({"chance": 0.25}, "found")
    for bpd in (3.0, 3.5):
        send_report(run, tracking, "validation-elbo-1-ema", facts, {"evaluation/bpd": bpd}, print, plot)
    assert training.exit_code is None
    live.communicate("\n", timeout=60)
    assert live.returncode == 0
    assert training.exit_code == 0
    assert [row["images"] for row in wandb_server.rows(training.name)] == [10, 20]

    first = wandb_server.rows(training.name)[0]  # its figures and pictures say what they are of
    assert (first["train/nats"], first["train/conditions"], "time" in first) == (3.0, "conditional on label", False)
    assert first["samples"]["caption"] == "samples, unconditional"

    report = wandb_server.runs[f"{training.name}-validation-elbo-1-ema"]
    assert (report.group, report.job_type, training.group) == ("mnist", "evaluation", "mnist")
    assert json.loads(report.summary)["evaluation/bpd"] == 3.5
    assert json.loads(report.config)["precision"]["value"] == "fp32"
    sent = [data for name, data in report.files.items() if name.startswith("media/images/plot")]
    assert sent
    assert pixels(sent[0]) == pixels(plot)


def pixels(png: bytes) -> bytes:
    """W&B writes pictures anew."""
    with Image.open(io.BytesIO(png)) as picture:
        return picture.convert("RGB").tobytes()


LIVE = """
import io
import sys
from PIL import Image
from cluster.storage.storage import Storage
from trainer.tracking.captions import as_metadata
from trainer.tracking.trackers import WandbTracker
from trainer.tracking.wandb_run import TrackingConfig
tracker = WandbTracker(Storage(sys.argv[1]), TrackingConfig(mode="online"), {}, lambda line: None)
buffer = io.BytesIO()
Image.new("L", (2, 2)).save(buffer, "PNG", pnginfo=as_metadata("samples, unconditional"))
row = {"images": 10, "train/nats": 3.0, "train/conditions": "conditional on label", "time": "2026-01-01T00:00:00+00:00"}
tracker.on_row(row, {"samples": buffer.getvalue()})
print("logged", flush=True)
sys.stdin.readline()
tracker.on_row({"images": 20}, {})
tracker.finish()
"""


def test_a_report_that_cannot_be_sent_says_where_it_is(tmp_path, wandb_server, monkeypatch):
    for name, value in wandb_server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(trainer.tracking.wandb_run, "INIT_SECONDS", 4.0)
    wandb_server.failing = 503
    lines = []
    send_report(Storage(str(tmp_path)), TrackingConfig(mode="online"), "a", {}, {"evaluation/bpd": 3.0}, lines.append)
    assert lines[0].startswith("W&B fails (")
    assert lines[0].endswith("); the report is in the run folder only")
