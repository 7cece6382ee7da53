"""One folder at a URL, the same on a local disk and in an object store.

Shards, indexes, runs and checkpoints are all reached through `Storage`: a plain path, file://, s3://, gs://, az:// or
(read only, no listing) http(s)://. The client is obstore; credentials and endpoints come from the environment, as the
providers' own tools read them (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, GOOGLE_APPLICATION_CREDENTIALS, AZURE_...).

A store that is away for a while is asked again, with a warning each time, for LOWERBOUND_PATIENCE seconds (180 if the
environment does not say). The client's own retries alone end after about two seconds, whatever their time limit.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import quote, unquote

from cluster.storage.errors import ENDS_EARLY, MissingError, StorageError, UnavailableError, told

if TYPE_CHECKING:  # importing obstore is put off until a folder is opened
    from obstore.store import ObjectStore

RETRIES: dict[str, Any] = {"max_retries": 8, "retry_timeout": timedelta(minutes=3)}
# `timeout` covers a whole body and would cut long downloads; `read_timeout` notices a connection that has gone quiet.
PART, PARTS = 16 << 20, 4  # bytes of a part of a large object (a store takes 10,000), and parts on their way at once
CLIENT: dict[str, Any] = {"timeout": "30m", "connect_timeout": "10s", "read_timeout": "30s"}

T = TypeVar("T")
logger = logging.getLogger(__name__)


class Entry(NamedTuple):
    """An object of a folder."""

    path: str  # relative to the folder
    size: int  # bytes
    etag: str  # the store's fingerprint of the content; "" where it has none


def is_local(url: str) -> bool:
    """Whether a URL is a path on this machine's disks."""
    return "://" not in url or url.startswith("file://")


def absolute(url: str) -> str:
    """The URL with a relative local path made absolute, so that it means the same in every process of a job.

    Raises `StorageError` for a URL without a bucket or host.
    """
    if url.startswith("file://"):
        url = unquote(url.removeprefix("file://"))
    if is_local(url):
        return str(Path(url).absolute())
    scheme, _, rest = url.partition("://")
    if not rest.strip("/"):
        raise StorageError(f"{url}: names no bucket or host; write {scheme}://bucket or {scheme}://bucket/folder")
    return f"{scheme}://{rest.rstrip('/')}"


def join(url: str, *parts: str) -> str:
    """The URL of an object below a URL."""
    return "/".join([url.rstrip("/"), *parts])


class Storage:
    """The folder at `url`; every path given to a method is relative to it.

    A local folder is made by the first write, never by reading. Raises `StorageError` (an `OSError`) in one line,
    `MissingError` where an object is not there. Can be pickled: a copy opens its own connection.
    """

    def __init__(self, url: str):
        self.url = absolute(url)
        self._opened: ObjectStore | None = None

    def __repr__(self) -> str:
        return f"Storage({self.url!r})"

    def __reduce__(self) -> tuple[type[Storage], tuple[str]]:
        return Storage, (self.url,)

    def folder(self, path: str) -> Storage:
        """The folder below this one."""
        return Storage(join(self.url, path))

    def local_path(self, path: str = "") -> Path | None:
        """Where `path` lies on this machine's disk; None in an object store."""
        return Path(self.url) / path if is_local(self.url) else None

    # ---- reading

    def read(self, path: str) -> bytes:
        """All bytes of an object."""
        import obstore

        def get() -> bytes:
            answer = obstore.get(self._store(), path)
            data = answer.bytes().to_bytes()
            if len(data) != answer.meta["size"]:
                raise UnavailableError(f"{join(self.url, path)}: {len(data)} of {answer.meta['size']} bytes came")
            return data

        return self._ask(path, get)

    def read_range(self, path: str, start: int, stop: int) -> memoryview:
        """The bytes [start, stop) of an object; fewer only if it ends before `stop`, an error if before `start`."""
        import obstore

        if start == stop:
            return memoryview(b"")
        file = self.local_path(path)
        if file is not None and ".." not in Path(path).parts:  # that the client refuses, in one line
            data = self._ask(path, lambda: memoryview(_read_range(file, start, stop)))
        else:
            data = self._ask(path, lambda: memoryview(obstore.get_range(self._store(), path, start=start, end=stop)))
        if len(data) != stop - start:
            entry = self.stat(path)
            if entry is None or entry.size != start + len(data):
                raise UnavailableError(f"{join(self.url, path)}: {len(data)} bytes of [{start}, {stop}) came")
        return data

    def stat(self, path: str) -> Entry | None:
        """Size and etag of an object, or None if there is none (or no bucket: the answer does not tell)."""
        import obstore

        try:
            meta = self._ask(path, lambda: obstore.head(self._store(), path))
        except MissingError:
            return None
        return Entry(path, meta["size"], meta.get("e_tag") or "")

    def exists(self, path: str) -> bool:
        """Whether there is an object at `path`."""
        return self.stat(path) is not None

    def list(self, folder: str = "") -> Iterator[Entry]:
        """Every object below `folder`, however deep, in the order of the names."""
        import obstore

        if is_local(self.url) and not (Path(self.url) / folder).is_dir():
            return
        if self.url.startswith(("http://", "https://")):
            raise StorageError(f"{self.url}: a web server cannot be listed; name the files")
        prefix = folder.strip("/") + "/" if folder else None
        metas = self._ask(folder, lambda: [meta for chunk in obstore.list(self._store(), prefix) for meta in chunk])
        for meta in sorted(metas, key=lambda meta: meta["path"]):
            yield Entry(meta["path"], meta["size"], meta.get("e_tag") or "")

    # ---- writing

    def write(self, path: str, data: bytes | memoryview | Path | Callable[[], Iterator[bytes | memoryview]]) -> None:
        """Put an object in one piece (a reader sees the old one or the new one).

        `data` is bytes, a local file, or a function that begins the object's pieces anew for each try; the last two go
        up in parts, so that the object is never in memory as a whole.
        """
        import obstore

        def put() -> None:
            content = data() if callable(data) else data
            parts = None if isinstance(data, bytes | memoryview) else True
            store = self._store(make=True)
            obstore.put(store, path, content, use_multipart=parts, chunk_size=PART, max_concurrency=PARTS)

        self._ask(path, put)

    def create(self, path: str, data: bytes) -> bool:
        """Put an object only if there is none (If-None-Match: *). False if there is one already: somebody was first.

        Where the answer to a first try was lost, an object of exactly these bytes counts as ours: let them name who
        wrote them.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError, BaseError

        unsure = False

        def put() -> bool:
            nonlocal unsure
            try:
                # One request, not parts: only that is atomic under If-None-Match.
                obstore.put(self._store(make=True), path, data, mode="create", use_multipart=False)
            except AlreadyExistsError:
                return unsure and self.read(path) == data
            except BaseError:
                unsure = True
                raise
            return True

        return self._ask(path, put)

    def delete(self, path: str) -> None:
        """Remove an object; nothing happens if there is none."""
        import obstore

        with contextlib.suppress(MissingError):
            self._ask(path, lambda: obstore.delete(self._store(), path))

    # ---- the client

    def _store(self, make: bool = False) -> ObjectStore:
        _refuse_after_fork()
        if self._opened is None:
            self._opened = _open_local(Path(self.url), make) if is_local(self.url) else _open_remote(self.url)
        return self._opened

    def _ask(self, path: str, request: Callable[[], T]) -> T:
        """Carry out a request, again and again while the store is away; its errors in one line that names the URL."""
        pause, give_up = 0.25, 0.0
        while True:
            try:
                with told(join(self.url, path) if path else self.url):
                    return request()
            except UnavailableError as error:
                now = time.monotonic()
                give_up = give_up or now + float(os.environ.get("LOWERBOUND_PATIENCE", "180"))
                if now + pause > give_up:
                    raise
                logger.warning("%s; asking again, for %.0f s more", error, give_up - now)
                time.sleep(pause)
                pause = min(2 * pause, 15.0)


_ENDPOINTS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT", "GOOGLE_BASE_URL", "AZURE_STORAGE_ENDPOINT")


def _open_local(folder: Path, make: bool) -> ObjectStore:
    from obstore.store import LocalStore

    if folder.exists() and not folder.is_dir():
        raise StorageError(f"{folder}: this is a file, not a folder")
    if not make and not folder.exists():
        raise MissingError(f"{folder}: there is no such folder")
    return LocalStore(folder, mkdir=make, automatic_cleanup=True)


def _read_range(file: Path, start: int, stop: int) -> bytes:
    """Without the client's threads, which cost more than to read from the page cache."""
    with open(file, "rb") as opened:
        opened.seek(start)
        data = opened.read(stop - start)
    if not data:
        raise StorageError(f"{file}: {ENDS_EARLY}")
    return data


def speaks_plain_http(url: str) -> bool:
    """Whether the store behind a URL is reached without TLS: its endpoint in the environment says so."""
    return url.startswith("http://") or any(os.environ.get(name, "").startswith("http://") for name in _ENDPOINTS)


def _open_remote(url: str) -> ObjectStore:
    from obstore.store import from_url

    scheme, _, rest = url.partition("://")
    client = CLIENT | ({"allow_http": True} if speaks_plain_http(url) else {})
    if scheme not in ("http", "https"):  # a name in a store is no URL yet: "50% #1" means itself
        bucket, _, folder = rest.partition("/")
        url = f"{scheme}://{bucket}/{quote(folder)}"
    options: dict[str, Any] = {"client_options": client, "retry_config": RETRIES}
    return from_url(url, **options)


_process: int | None = None  # the one whose threads serve the client


def _refuse_after_fork() -> None:
    """The client's threads do not live on in a fork of a process that has used it: a request would wait for ever."""
    global _process
    _process = _process or os.getpid()
    if _process != os.getpid():
        raise RuntimeError("storage was used before this process was forked: start it by spawn or forkserver")
