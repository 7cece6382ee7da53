"""Training continues, and the API key stays where it is, for any answer of W&B's server and any wandb folder."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import wandb

from cluster.storage.storage import Storage
from trainer.tracking.trackers import WandbTracker
from trainer.tracking.wandb_rows import BEFORE_ALL, last_place_in_log, last_place_on_server, place
from trainer.tracking.wandb_run import TrackingConfig, run_id


@contextmanager
def server(status: int, body: bytes, **headers: str) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """A server with one answer to everything; its URL, and the headers of the requests that it got."""
    got: list[dict[str, str]] = []

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(dict(self.headers))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=http.serve_forever, args=[0.05], daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}", got
    http.shutdown()
    http.server_close()


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Sets the server that the client is configured for, with a key."""

    def configure(url: str) -> None:
        monkeypatch.setenv("WANDB_BASE_URL", url)
        monkeypatch.setenv("WANDB_API_KEY", "local-" + "0123456789" * 4)
        wandb.teardown()

    yield configure
    monkeypatch.undo()
    wandb.teardown()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_the_key_is_not_sent_where_a_redirect_points(key, status):
    answer = json.dumps({"data": {"model": {"bucket": {"historyTail": '["{\\"images\\": 5}"]'}}}}).encode()
    with server(200, answer) as (elsewhere, got), server(status, b"", Location=f"{elsewhere}/graphql") as (url, asked):
        key(url)
        assert last_place_on_server("e", "p", "id") is None
    assert len(asked) == 1
    assert got == []


def tail(*rows: object) -> bytes:
    lines = json.dumps([json.dumps(row) for row in rows])
    return json.dumps({"data": {"model": {"bucket": {"historyTail": lines}}}}).encode()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>502</html>",
        b"[]",
        b"[1, 2]",
        b"null",
        b"[" * 100_000,
        b'{"data": []}',
        b'{"data": {"model": {"bucket": []}}}',
        b'{"data": {"model": {"bucket": {"historyTail": 5}}}}',
        b'{"data": {"model": {"bucket": {"historyTail": "[5]"}}}}',
        tail([1]),
        b"\xff\xfe",
    ],
)
def test_an_answer_of_another_kind_is_none(key, body):
    with server(200, body) as (url, _):
        key(url)
        assert last_place_on_server("e", "p", "id") in (None, BEFORE_ALL)


@pytest.mark.parametrize("images", [float("inf"), float("nan"), -1, "5", None, [], 1e300])
def test_a_row_with_an_odd_count_has_no_place(images):
    assert place({"images": images}) == BEFORE_ALL
    assert place({"images": 5, "rollbacks": images}) == BEFORE_ALL


@pytest.mark.parametrize("content", [b"", b"\0" * 5000, b":W&B" + b"\xff" * 5000, b"text", "pipe", "folder", "huge"])
def test_a_damaged_log_has_no_rows(tmp_path, content):
    path = tmp_path / "run.wandb"
    if content == "folder":
        path.mkdir()
    elif content == "pipe":
        subprocess.run(["mkfifo", path], check=True)
    elif content == "huge":
        with path.open("wb") as file:
            file.truncate(1 << 42)
    else:
        path.write_bytes(content)
    assert last_place_in_log(path) == BEFORE_ALL


@pytest.mark.parametrize("content", [b"", b"abc/../d\n", b"\xff", b"x" * 200_000, b"two words"])
def test_a_damaged_id_is_replaced(tmp_path, content):
    (tmp_path / "wandb-id").write_bytes(content)
    said: list[str] = []
    id = run_id(Storage(str(tmp_path)), said.append)
    assert len(id) == 12
    assert run_id(Storage(str(tmp_path)), said.append) == id
    assert said == [f"W&B: {tmp_path}/wandb-id is damaged; a new W&B run is begun"]


def test_a_copied_folder_says_that_it_continues_the_same_run(tmp_path):
    said: list[str] = []
    id = run_id(Storage(str(tmp_path / "a")), said.append)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert said == []
    assert run_id(Storage(str(tmp_path / "b")), said.append) == id
    assert said == [
        f"W&B: this folder continues W&B run {id}, begun in {tmp_path}/a; if that folder continues as well, "
        "delete wandb-id here"
    ]


def test_an_id_of_an_older_version_has_no_folder(tmp_path):
    (tmp_path / "wandb-id").write_bytes(b"0123456789ab")
    said: list[str] = []
    assert run_id(Storage(str(tmp_path)), said.append) == "0123456789ab"
    assert said == []


@pytest.mark.parametrize("kind", ["file", "junk"])
def test_foreign_files_in_the_wandb_folder_stop_nothing(tmp_path, kind):
    run = tmp_path / "a run"
    run.mkdir()
    if kind == "file":
        (run / "wandb").write_bytes(b"not a folder")
    else:
        (run / "wandb" / "offline-run-1-x").mkdir(parents=True)
        (run / "wandb" / "latest-run").mkdir()
        (run / "wandb" / "offline-run-1-x" / "run-x.wandb").write_bytes(b"junk")
        (run / "wandb-id").write_bytes(b"x")
    said: list[str] = []
    tracker = WandbTracker(Storage(str(run)), TrackingConfig(mode="offline"), {}, said.append)
    tracker.on_row({"images": 10, "train/bpd": 1.0}, {})
    tracker.before_commit()
    tracker.finish()
    wandb.teardown()
    assert "W&B is offline" in said[-1]
    if kind == "junk":  # quoted for a shell
        assert f"wandb leet '{run}/wandb'` shows it" in said[-1]


def test_the_printed_command_uploads_every_segment(tmp_path):
    run = Path(tmp_path / "it's a run")
    said: list[str] = []
    for count in (10, 20):
        tracker = WandbTracker(Storage(str(run)), TrackingConfig(mode="offline"), {}, said.append)
        tracker.on_row({"images": count, "train/bpd": 1.0}, {})
        tracker.finish()
        wandb.teardown()
    pattern = said[-1].partition("sync ")[2].partition("`")[0]
    listed = subprocess.run(["sh", "-c", f"ls -d {pattern}"], capture_output=True, text=True, check=True).stdout
    assert len(listed.splitlines()) == 2
