"""Storage in an object store: refusals, network faults, outages and lost answers."""

import logging
import os
import re
import threading
from datetime import timedelta

import pytest

from cluster.storage import storage as module
from cluster.storage.errors import MissingError, StorageError, UnavailableError
from cluster.storage.storage import Storage
from tests.testbed.faults import Fault

DATA = os.urandom(3_000_000)

ASKS = {
    "read": lambda storage: storage.read("o"),
    "range": lambda storage: storage.read_range("o", 0, 5),
    "list": lambda storage: list(storage.list()),
    "write": lambda storage: storage.write("o", b"x"),
    "create": lambda storage: storage.create("o", b"x"),
    "delete": lambda storage: storage.delete("o"),
    "stat": lambda storage: storage.stat("o"),
}
READS = {
    "read": lambda storage: storage.read("o"),
    "range": lambda storage: storage.read_range("o", 0, len(DATA)),
    "part": lambda storage: storage.read_range("o", 1000, len(DATA) - 1000),
}
WHOLE = {"read": DATA, "range": DATA, "part": DATA[1000:-1000]}


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setenv("LOWERBOUND_PATIENCE", "0")


@pytest.fixture
def behind(bucket, proxy, monkeypatch):
    """The bucket behind the proxy, DATA stored as "o"; with shorter timeouts and pauses between retries."""
    bucket.write("o", DATA)
    proxy.forget()
    monkeypatch.setitem(module.CLIENT, "read_timeout", "500ms")
    monkeypatch.setitem(module.RETRIES, "backoff", {"init_backoff": timedelta(milliseconds=5)})
    return Storage(bucket.url)


# ---- refused


@pytest.mark.parametrize("ask", ["read", "range", "list", "write", "create"])
def test_a_missing_bucket_is_a_one_line_error(s3_environment, ask):
    with pytest.raises(MissingError, match=r"^s3://nobodys/runs.*: no such bucket$"):
        ASKS[ask](Storage("s3://nobodys/runs"))


@pytest.mark.parametrize("ask", ASKS)
def test_a_wrong_secret_is_a_one_line_error(bucket, monkeypatch, ask):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StorageError) as caught:
        ASKS[ask](Storage(bucket.url))
    where = bucket.url if ask == "list" else f"{bucket.url}/o"
    assert str(caught.value) == f"{where}: access denied; check the credentials in the environment"


def test_missing_credentials_are_a_one_line_error(bucket, proxy, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", proxy.url)  # stands for the cloud's service, which there may not be
    proxy.add(Fault("status", status=404))
    with pytest.raises(StorageError) as caught:
        Storage(bucket.url).read("o")
    assert str(caught.value).startswith(f"{bucket.url}/o: no credentials in the environment (S3: AWS_ACCESS_KEY_ID")


def test_the_stores_own_message_is_in_the_error(s3_environment):
    with pytest.raises(StorageError, match=r"^s3://UPPER_case/o: InvalidBucketName: [^\n<]*$"):
        Storage("s3://UPPER_case").read("o")


# ---- a bad network


def _start(request):
    """The first byte of a range request."""
    return int(request.range.removeprefix("bytes=").partition("-")[0] or 0)


@pytest.mark.parametrize("ask", READS)
@pytest.mark.parametrize("kind", ["reset", "truncate", "stall"])
def test_an_interrupted_body_is_resumed_where_it_ended(behind, proxy, kind, ask):
    for _ in range(10):
        proxy.forget()
        proxy.add(cut := Fault(kind, after=1_000_000, times=1, method="GET"))
        assert READS[ask](behind) == WHOLE[ask]
        assert [request.fault for request in proxy.requests] == [kind, None]
        begun, resumed = (_start(request) for request in proxy.requests)
        assert 0 <= resumed - begun <= cut.after
        assert proxy.sent == cut.after + len(WHOLE[ask]) - (resumed - begun)
        if resumed > begun:  # on a busy machine the client may see the end before it has taken any byte
            return
    raise AssertionError("a body was never resumed after its beginning")


@pytest.mark.parametrize("ask", READS)
@pytest.mark.parametrize("kind", ["reset", "truncate"])
def test_a_body_that_is_always_interrupted_is_an_error_and_never_short(behind, proxy, impatient, kind, ask):
    proxy.add(Fault(kind, after=10_000, method="GET"))
    with pytest.raises(UnavailableError, match=r"/o: no answer from the store \(HTTP error: [^\n]*\)$"):
        READS[ask](behind)


@pytest.mark.parametrize("kind", ["status", "refuse"])
def test_many_failures_lose_nothing(behind, proxy, kind):
    proxy.add(Fault(kind, share=0.4))
    for i in range(10):
        behind.write(f"storm/{i}", b"%d" % i)
        assert behind.create(f"created/{i}", b"%d" % i)
        assert behind.read(f"storm/{i}") == b"%d" % i
    behind.delete("storm/0")
    assert [entry.path for entry in behind.list("storm")] == [f"storm/{i}" for i in range(1, 10)]
    assert proxy.faults > 5


@pytest.mark.parametrize("size", [1000, 21_000_000])
def test_an_interrupted_upload_is_retried(behind, proxy, tmp_path, size):
    (tmp_path / "source").write_bytes(data := os.urandom(size))
    proxy.add(Fault("cut upload", after=500, times=3, method="PUT"))
    behind.write("up", tmp_path / "source")
    assert proxy.faults == 3
    assert behind.read("up") == data


@pytest.fixture
def small_parts(monkeypatch):
    """Parts of the smallest size that stores accept."""
    monkeypatch.setattr(module, "PART", 5 << 20)


def test_an_upload_that_always_fails_keeps_the_old_object_and_leaves_no_parts(
    behind, s3, proxy, impatient, small_parts, tmp_path
):
    (tmp_path / "source").write_bytes(bytes(11_000_000))
    proxy.add(Fault("status", method="PUT", path="partNumber=2"))
    with pytest.raises(UnavailableError):
        behind.write("o", tmp_path / "source")
    assert behind.read("o") == DATA
    name, _, prefix = behind.url.removeprefix("s3://").partition("/")
    assert "Uploads" not in s3.client().list_multipart_uploads(Bucket=name, Prefix=prefix)


def test_a_file_is_uploaded_in_parts(behind, proxy, small_parts, tmp_path):
    (tmp_path / "source").write_bytes(bytes(21_000_000))
    behind.write("up", tmp_path / "source")
    assert sum("partNumber=" in request.target for request in proxy.requests) >= 4


# ---- lost answers


def test_a_creator_whose_answer_was_lost_recognises_its_own_object(behind, proxy):
    proxy.add(Fault("lose answer", times=1, method="PUT"))
    assert behind.create("new", b"mine") is True
    assert behind.create("new", b"mine") is False


def test_a_creator_whose_answer_was_lost_does_not_claim_anothers_object(behind, proxy):
    behind.create("new", b"theirs")
    proxy.add(Fault("lose answer", times=1, method="PUT"))
    assert behind.create("new", b"mine") is False
    assert behind.read("new") == b"theirs"


def test_a_lost_answer_to_a_deletion_or_an_overwrite_loses_nothing(behind, proxy):
    proxy.add(Fault("lose answer", times=1, method="POST"))
    behind.delete("o")
    assert behind.stat("o") is None
    proxy.add(Fault("lose answer", times=1, method="PUT"))
    behind.write("o", b"new")
    assert behind.read("o") == b"new"


# ---- an outage


def test_an_outage_longer_than_the_clients_own_retries_is_waited_out_with_warnings(bucket, s3, monkeypatch, caplog):
    bucket.write("o", DATA)
    monkeypatch.setitem(module.RETRIES, "max_retries", 2)
    s3.stop()
    back = threading.Timer(2.0, s3.start)
    back.start()
    try:
        assert Storage(bucket.url).read("o") == DATA
    finally:
        back.join()
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings
    for line in warnings:
        assert re.fullmatch(rf"{bucket.url}/o: no answer from {s3.endpoint} \(.*\); retrying for \d+ s more", line)


def test_a_store_that_stays_away_is_an_error(bucket, monkeypatch):
    monkeypatch.setenv("LOWERBOUND_PATIENCE", "1")
    monkeypatch.setitem(module.RETRIES, "max_retries", 1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(UnavailableError, match=r"/o: no answer from http://127.0.0.1:9 \([^\n]*\)$"):
        Storage(bucket.url).read("o")
