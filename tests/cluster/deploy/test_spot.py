from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from cluster.deploy import spot
from tests.testbed.processes import REPOSITORY


class Metadata(ThreadingHTTPServer):
    """AWS's service for a machine about itself, as far as spot notices go."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.announced = False
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Metadata

    def do_PUT(self) -> None:
        asked = self.path == "/latest/api/token" and self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
        self._answer(200 if asked else 400, b"a-token")

    def do_GET(self) -> None:
        if self.headers["X-aws-ec2-metadata-token"] != "a-token":
            self._answer(401, b"")
        elif self.path == "/latest/meta-data/spot/instance-action" and self.server.announced:
            self._answer(200, b'{"action": "terminate", "time": "2026-11-22T12:00:00Z"}')
        else:
            self._answer(404, b"")

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    with Metadata() as server:
        threading.Thread(target=server.serve_forever, args=[0.05], daemon=True).start()
        yield server
        server.shutdown()


def test_a_machine_is_reclaimed_once_aws_says_so(metadata: Metadata) -> None:
    assert not spot.reclaimed(metadata.url)
    metadata.announced = True
    assert spot.reclaimed(metadata.url)


def test_outside_aws_nothing_is_reclaimed() -> None:
    assert not spot.reclaimed("http://127.0.0.1:9")


def test_a_notice_ends_the_command_in_its_own_way(metadata: Metadata) -> None:
    metadata.announced = True
    script = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit('drained')); print('up'); time.sleep(60)"
    ended = subprocess.run(
        [sys.executable, "-m", "cluster.deploy.spot", sys.executable, "-uc", script],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=30, check=False,
        env={**os.environ, "AWS_EC2_METADATA_SERVICE_ENDPOINT": metadata.url},
    )  # fmt: skip
    assert ended.returncode == 1
    assert "draining it" in ended.stdout
    assert ended.stderr == "drained\n"


def test_the_commands_own_status_is_handed_on(metadata: Metadata) -> None:
    assert spot.main([sys.executable, "-c", "raise SystemExit(3)"]) == 3
