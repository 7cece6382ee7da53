"""Reading from a plain web server."""

import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from cluster.storage.errors import MissingError, StorageError
from cluster.storage.storage import Storage
from tests.testbed.faults import Fault, FaultProxy

FILES = {"/a/shard.tar": bytes(range(256)) * 1000, "/a/b%20c.tar": b"space"}


class _Files(BaseHTTPRequestHandler):
    """FILES, with ranges."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if (data := FILES.get(self.path)) is None:
            self.send_error(404)
            return
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        self.send_response(206 if wanted else 200)
        if wanted:
            start, stop = int(wanted[1]), min(int(wanted[2]) + 1, len(data))
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
            data = data[start:stop]
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Last-Modified", "Sun, 22 Nov 2026 09:00:00 GMT")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def do_HEAD(self):
        self.do_GET()

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), _Files) as server:
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_objects_and_ranges_are_read(server):
    storage, data = Storage(f"{server}/a/"), FILES["/a/shard.tar"]
    assert storage.read("shard.tar") == data
    assert storage.read_range("shard.tar", 1000, 2000) == data[1000:2000]
    assert storage.read_range("shard.tar", len(data) - 5, len(data) + 5) == data[-5:]
    assert (entry := storage.stat("shard.tar"))
    assert entry.size == len(data)
    assert storage.read("b c.tar") == b"space"


def test_a_missing_file_is_a_one_line_error(server):
    with pytest.raises(MissingError, match=rf"^{server}/a/none.tar: no such object$"):
        Storage(f"{server}/a").read("none.tar")
    assert Storage(f"{server}/a").stat("none.tar") is None


@pytest.mark.parametrize("kind", ["reset", "truncate"])
def test_an_interrupted_body_is_never_short(server, kind):
    with FaultProxy(server) as proxy:
        proxy.add(Fault(kind, after=100_000, times=1))
        assert Storage(f"{proxy.url}/a").read_range("shard.tar", 10, 250_000) == FILES["/a/shard.tar"][10:250_000]
        assert proxy.faults == 1


def test_a_web_server_cannot_be_listed(server):
    with pytest.raises(StorageError, match=rf"^{server}/a: a web server cannot be listed; name the files$"):
        list(Storage(f"{server}/a").list())
