"""The proxy does to an answer what it was told, and nothing else."""

import http.client
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.testbed.faults import Fault, FaultProxy

BODY = bytes(range(256)) * 4096  # 1 MiB


class _Handler(BaseHTTPRequestHandler):
    """Answers GET with BODY, in chunks below /chunked; PUT with the length that arrived."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.send_response(200)
        if self.path.startswith("/chunked"):
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY))
        else:
            self.send_header("Content-Length", str(len(BODY)))
            self.end_headers()
            self.wfile.write(BODY)

    def do_PUT(self):
        self.server.uploads.append(len(self.rfile.read(int(self.headers["Content-Length"]))))  # type: ignore[attr-defined]
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


class _QuietServer(ThreadingHTTPServer):
    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.uploads = []  # lengths in bytes

    def handle_error(self, *_):
        """Clients that leave are what this is about."""


@pytest.fixture
def server():
    with _QuietServer() as server:
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        yield server
        server.shutdown()


def url(server):
    return f"http://127.0.0.1:{server.server_port}"


@pytest.fixture
def proxy(server):
    with FaultProxy(url(server)) as proxy:
        yield proxy


def ask(proxy, method="GET", path="/", body=None, timeout=10.0):
    """(status, body) of one request on a connection of its own."""
    connection = http.client.HTTPConnection(proxy.url.removeprefix("http://"), timeout=timeout)
    try:
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@pytest.mark.parametrize("path", ["/", "/chunked"])
def test_without_faults_an_answer_passes_unchanged(proxy, server, path):
    assert ask(proxy, path=path) == (200, BODY)
    assert ask(proxy, "PUT", body=b"x" * 300_000) == (204, b"")
    assert server.uploads == [300_000]
    assert [request.method for request in proxy.requests] == ["GET", "PUT"]
    assert proxy.received == 300_000
    assert proxy.sent - len(BODY) in range(100 if path == "/chunked" else 1)
    assert proxy.faults == 0


def test_one_connection_serves_many_requests(proxy):
    connection = http.client.HTTPConnection(proxy.url.removeprefix("http://"), timeout=10)
    for _ in range(3):
        connection.request("GET", "/")
        assert connection.getresponse().read() == BODY
    connection.close()
    assert len(proxy.requests) == 3


@pytest.mark.parametrize("after", [0, 1, 100_000])
def test_truncate_ends_the_body_early(proxy, after):
    proxy.add(Fault("truncate", after=after))
    with pytest.raises(http.client.IncompleteRead) as caught:
        ask(proxy)
    assert caught.value.partial == BODY[:after]


def test_reset_is_an_error_of_the_connection(proxy):
    proxy.add(Fault("reset", after=1000))
    with pytest.raises(ConnectionResetError):
        ask(proxy)
    assert proxy.sent == 1000


def test_refuse_gives_no_answer(proxy):
    proxy.add(Fault("refuse"))
    with pytest.raises(ConnectionError):
        ask(proxy)
    assert proxy.sent == 0


def test_stall_sends_nothing_more(proxy):
    proxy.add(Fault("stall", after=1000))
    with pytest.raises(TimeoutError):
        ask(proxy, timeout=0.3)
    assert proxy.sent == 1000


def test_slow_takes_its_time(proxy):
    proxy.add(Fault("slow", rate=len(BODY) / 0.5))
    start = time.monotonic()
    assert ask(proxy) == (200, BODY)
    assert time.monotonic() - start >= 0.5


def test_corrupt_flips_one_byte(proxy):
    proxy.add(Fault("corrupt", after=70_000))
    _, body = ask(proxy)
    assert [i for i in range(len(BODY)) if body[i] != BODY[i]] == [70_000]
    assert len(body) == len(BODY)


def test_a_cut_upload_does_not_reach_the_server_whole(proxy, server):
    proxy.add(Fault("cut upload", after=50_000))
    with pytest.raises(ConnectionError):
        ask(proxy, "PUT", body=b"x" * 5_000_000)
    assert proxy.received == 50_000
    assert 5_000_000 not in server.uploads


def test_a_lost_answer_is_that_of_a_request_that_was_carried_out(proxy, server):
    proxy.add(Fault("lose answer"))
    with pytest.raises(ConnectionError):
        ask(proxy, "PUT", body=b"x" * 1000)
    assert server.uploads == [1000]


def test_status_is_answered_without_asking_the_server(proxy, server):
    proxy.add(Fault("status", status=403, method="PUT"))
    assert ask(proxy, "PUT", body=b"x")[0] == 403
    assert ask(proxy)[0] == 200
    assert server.uploads == []


def test_a_fault_happens_to_the_requests_that_it_matches_as_often_as_it_was_told(proxy):
    proxy.add(Fault("status", times=2, path=r"^/shards/\d+\.tar$"))
    paths = ["/other", "/shards/1.tar", "/shards/1.tar.json", "/shards/2.tar", "/shards/3.tar"]
    assert [ask(proxy, path=path)[0] for path in paths] == [200, 503, 200, 503, 200]
    proxy.add(Fault("status", status=500))
    proxy.heal()
    proxy.forget()
    assert ask(proxy)[0] == 200
    assert (proxy.faults, len(proxy.requests)) == (0, 1)


def test_a_share_of_requests_fails_the_same_way_for_the_same_seed(server):
    def statuses(seed):
        with FaultProxy(url(server), seed) as proxy:
            proxy.add(Fault("status", share=0.3))
            return [ask(proxy, "PUT", body=b"x")[0] for _ in range(40)]

    first = statuses(1)
    assert first == statuses(1) != statuses(2)
    assert 3 <= first.count(503) <= 22  # 12 are expected
