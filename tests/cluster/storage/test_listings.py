"""Listings of object stores with what other programs, or broken ones, leave in them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from urllib.parse import parse_qs, urlsplit

import pytest

from cluster.storage import storage
from cluster.storage.errors import StorageError
from cluster.storage.storage import Storage


class Listing(BaseHTTPRequestHandler):
    """Answers S3 listings: `pages` are the keys of each."""

    pages: ClassVar[list[list[str]]] = []
    payers: ClassVar[list[str | None]] = []  # of each request
    endless = ""  # "same": the first page again and again; "new": other keys on each; "empty": no keys

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        self.payers.append(self.headers.get("x-amz-request-payer"))
        number = int(query.get("continuation-token", ["0"])[0])
        keys = self.pages[number] if number < len(self.pages) else []
        if self.endless == "same":
            keys = [f"set/{i:04}.tar" for i in range(100)]
        elif self.endless == "new":
            keys = [f"set/{number:06}-{i:04}.tar" for i in range(100)]
        more = bool(self.endless) or number + 1 < len(self.pages)
        entries = "".join(
            f"<Contents><Key>{key}</Key><LastModified>2024-01-01T00:00:00.000Z</LastModified>"
            f'<ETag>"e"</ETag><Size>{0 if key.endswith("/") else 5}</Size></Contents>'
            for key in keys
        )
        token = f"<NextContinuationToken>{number + 1}</NextContinuationToken>" if more else ""
        truncated = f"<IsTruncated>{str(more).lower()}</IsTruncated>"
        body = f"<ListBucketResult>{truncated}{token}{entries}</ListBucketResult>".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def listing(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Listing]]:
    handler = type("Handler", (Listing,), {"pages": [], "payers": [], "endless": ""})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=[0.05], daemon=True).start()
    for name, value in (
        ("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}"),
        ("AWS_ACCESS_KEY_ID", "a"),
        ("AWS_SECRET_ACCESS_KEY", "b"),
        ("AWS_REGION", "us-east-1"),
        ("LOWERBOUND_PATIENCE", "1"),
    ):
        monkeypatch.setenv(name, value)
    yield handler
    server.shutdown()
    server.server_close()


def names() -> list[str]:
    return [entry.path for entry in Storage("s3://bucket/set").list()]


def test_markers_of_folders_are_no_objects(listing):
    listing.pages = [["set/", "set/0.tar", "set/a/"], ["set/a/1.tar", "set/a-b.tar"]]
    assert names() == ["0.tar", "a-b.tar", "a/1.tar"]


@pytest.mark.parametrize("key", ["set//x.tar", "set/../x.tar", "set/./x.tar"])
def test_a_key_that_is_no_path_is_named(listing, key):
    listing.pages = [["set/0.tar", key]]
    with pytest.raises(StorageError, match=rf"s3://bucket/set: the object '{key}' .*; rename it"):
        names()


def test_a_listing_that_repeats_itself_ends(listing):
    listing.endless = "same"
    with pytest.raises(StorageError, match="the store repeats its listing after 100 objects"):
        names()


def test_a_listing_without_end_is_bounded(listing, monkeypatch):
    monkeypatch.setattr(storage, "MOST_ENTRIES", 1000)
    listing.endless = "new"
    with pytest.raises(StorageError, match="lists more than 1,000 objects"):
        names()


def test_a_listing_without_progress_is_bounded(listing, monkeypatch):
    monkeypatch.setattr(storage, "LISTING_SECONDS", 0.5)
    listing.endless = "empty"
    with pytest.raises(StorageError, match="the listing made no progress"):
        names()
    listing.endless = ""  # lets the client's thread end


def test_requests_to_a_bucket_whose_reader_pays_say_so(listing: type[Listing], monkeypatch: pytest.MonkeyPatch) -> None:
    listing.pages = [["set/a.tar"]]
    assert names() == ["a.tar"]
    monkeypatch.setenv("AWS_REQUEST_PAYER", "true")
    assert names() == ["a.tar"]
    assert listing.payers == [None, "requester"]
