"""A folder at a URL, with the same interface for a local disk and an object store.

Shards, indexes, runs and checkpoints are all accessed through `Storage`: a plain path, file://, s3://, gs://, az:// or
(read-only, no listing) http(s)://. The client is obstore; credentials and endpoints come from the environment variables
of the providers' own tools (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, GOOGLE_APPLICATION_CREDENTIALS, AZURE_...).

Requests to a store that is unavailable are retried, with a warning each time, for LOWERBOUND_PATIENCE seconds (an
environment variable; default 180). The client's own retries end after about two seconds, whatever their time limit.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import quote, unquote

from cluster.storage.errors import (
    ENDS_EARLY,
    MissingError,
    StorageError,
    TooLargeError,
    UnavailableError,
    storage_errors,
)

if TYPE_CHECKING:  # obstore is imported when a folder is first opened
    from obstore.store import ObjectStore

RETRIES: dict[str, Any] = {"max_retries": 8, "retry_timeout": timedelta(minutes=3)}
PART, PARTS = 16 << 20, 4  # bytes of a part of a multipart upload (stores accept 10,000 parts), concurrent parts
# `timeout` covers a whole body and would cut long downloads; `read_timeout` detects a stalled connection.
CLIENT: dict[str, Any] = {"timeout": "30m", "connect_timeout": "10s", "read_timeout": "30s"}
MOST_ENTRIES = 2_000_000  # objects of a listing, about 0.5 GB of memory
LISTING_SECONDS = 600.0  # for the next part of a listing

T = TypeVar("T")
logger = logging.getLogger(__name__)


class Entry(NamedTuple):
    """An object in a folder."""

    path: str  # relative to the folder
    size: int  # bytes
    etag: str  # the store's hash of the content; "" if it has none


def is_local(url: str) -> bool:
    """Whether a URL is a path on a disk of this machine."""
    return "://" not in url or url.startswith("file://")


def absolute(url: str) -> str:
    """The URL, with a relative local path, or one that begins with ~, made absolute.

    It then means the same in every process of a job. Raises `StorageError` for a URL without a bucket or host.
    """
    if url.startswith("file://"):
        url = unquote(url.removeprefix("file://"))
    if is_local(url):
        return str(Path(os.path.expanduser(url)).absolute())
    scheme, _, rest = url.partition("://")
    if not rest.strip("/"):
        raise StorageError(f"{url}: no bucket or host; write {scheme}://bucket or {scheme}://bucket/folder")
    return f"{scheme}://{rest.rstrip('/')}"


def join(url: str, *parts: str) -> str:
    """The URL of an object below a URL."""
    return "/".join([url.rstrip("/"), *parts])


class Storage:
    """The folder at `url`; paths given to methods are relative to it.

    A local folder is created by the first write, never by reading. Methods raise `StorageError` (an `OSError`), one
    line; `MissingError` for a missing object. Can be pickled: a copy opens its own connection.
    """

    def __init__(self, url: str):
        self.url = absolute(url)
        self._opened: ObjectStore | None = None

    def __repr__(self) -> str:
        return f"Storage({self.url!r})"

    def __reduce__(self) -> tuple[type[Storage], tuple[str]]:
        return Storage, (self.url,)

    def folder(self, path: str) -> Storage:
        """A folder below this one."""
        return Storage(join(self.url, path))

    def local_path(self, path: str = "") -> Path | None:
        """`path` as a path on this machine; None for an object store."""
        return Path(self.url) / path if is_local(self.url) else None

    # ---- reading

    def read(self, path: str, most: int | None = None) -> bytes:
        """The bytes of an object. An object of more than `most` bytes is refused before it is read."""
        import obstore

        def get() -> bytes:
            answer = obstore.get(self._store(), path)
            size = answer.meta["size"]
            self._check_size(path, size, most)
            data = answer.bytes().to_bytes()
            if len(data) != size:
                raise UnavailableError(f"{join(self.url, path)}: received {len(data)} of {size} bytes")
            return data

        if (file := self._local_file(path)) is not None:
            self._check_size(path, file.stat().st_size, most)
        return self._ask(path, get)

    def _check_size(self, path: str, size: int, most: int | None) -> None:
        if most is not None and size > most:
            raise TooLargeError(f"{join(self.url, path)}: has {size:,} bytes, expected at most {most:,}")

    def read_range(self, path: str, start: int, stop: int) -> memoryview:
        """The bytes [start, stop) of an object; fewer if it ends before `stop`, an error if before `start`."""
        import obstore

        if start == stop:
            return memoryview(b"")
        if (file := self._local_file(path)) is not None:
            data = self._ask(path, lambda: memoryview(_read_range(file, start, stop)))
        else:
            data = self._ask(path, lambda: memoryview(obstore.get_range(self._store(), path, start=start, end=stop)))
        if len(data) != stop - start:
            entry = self.stat(path)
            if entry is None or entry.size != start + len(data):
                raise UnavailableError(f"{join(self.url, path)}: received {len(data)} bytes of [{start}, {stop})")
        return data

    def stat(self, path: str) -> Entry | None:
        """Size and ETag of an object; None if it is missing (or its bucket is: the answer is the same)."""
        import obstore

        self._local_file(path)
        try:
            meta = self._ask(path, lambda: obstore.head(self._store(), path))
        except MissingError:
            return None
        return Entry(path, meta["size"], meta.get("e_tag") or "")

    def exists(self, path: str) -> bool:
        """Whether an object exists at `path`."""
        return self.stat(path) is not None

    def _local_file(self, path: str) -> Path | None:
        """The file of an object on a local disk; None if it is missing, and for an object store.

        Raises StorageError for a pipe or a device, which would block or never end.
        """
        file = self.local_path(path)
        if file is None or ".." in Path(path).parts:  # the client refuses ".." with an error
            return None
        try:
            mode = file.stat().st_mode
        except (OSError, ValueError):  # reported by the client
            return None
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise StorageError(f"{file}: a pipe, socket or device, not a regular file")
        return file

    def list(self, folder: str = "") -> Iterator[Entry]:
        """All objects below `folder`, recursively, sorted by path.

        Markers of folders, which consoles of object stores write, are left out. Raises StorageError above
        `MOST_ENTRIES` objects, and for a store that repeats itself or sends nothing for `LISTING_SECONDS`.
        """
        import obstore

        if is_local(self.url) and not (Path(self.url) / folder).is_dir():
            return
        if self.url.startswith(("http://", "https://")):
            raise StorageError(f"{self.url}: a web server cannot be listed; name the files")
        prefix = folder.strip("/") + "/" if folder else None

        def listed() -> dict[str, Entry]:
            chunks = obstore.list(self._store(), prefix)
            return _collect(chunks if is_local(self.url) else _timed(chunks, self.url), join(self.url, folder))

        entries = self._ask(folder, listed)
        folders = {path[:end] for path in entries for end in _slashes(path)}
        for path in sorted(entries):
            if path and not (entries[path].size == 0 and path in folders):
                yield entries[path]

    # ---- writing

    def write(self, path: str, data: bytes | memoryview | Path | Callable[[], Iterator[bytes | memoryview]]) -> None:
        """Write an object atomically: a reader sees the old one or the new one.

        `data` is bytes, a local file, or a function that returns an iterator over the bytes and is called again for
        each try; the last two are uploaded in parts, so that the object is never in memory as a whole.
        """
        import obstore

        def put() -> None:
            content = data() if callable(data) else data
            parts = None if isinstance(data, bytes | memoryview) else True
            store = self._store(make=True)
            obstore.put(store, path, content, use_multipart=parts, chunk_size=PART, max_concurrency=PARTS)

        self._ask(path, put)

    def create(self, path: str, data: bytes) -> bool:
        """Write an object only if it does not exist (If-None-Match: *). Returns False if it exists.

        If the answer to an earlier try was lost, an existing object with exactly these bytes counts as ours: the bytes
        must identify their writer.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError, BaseError

        unsure = False

        def put() -> bool:
            nonlocal unsure
            try:
                # A single request: multipart uploads are not atomic under If-None-Match.
                obstore.put(self._store(make=True), path, data, mode="create", use_multipart=False)
            except AlreadyExistsError:
                return unsure and self.read(path) == data
            except BaseError:
                unsure = True
                raise
            return True

        return self._ask(path, put)

    def delete(self, path: str) -> None:
        """Remove an object, if it exists."""
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
        """Make a request and retry it while the store is unavailable. Errors are one line that names the URL."""
        pause, give_up = 0.25, 0.0
        while True:
            try:
                with storage_errors(join(self.url, path) if path else self.url):
                    return request()
            except UnavailableError as error:
                now = time.monotonic()
                give_up = give_up or now + float(os.environ.get("LOWERBOUND_PATIENCE", "180"))
                if now + pause > give_up:
                    raise
                logger.warning("%s; retrying for %.0f s more", error, give_up - now)
                time.sleep(pause)
                pause = min(2 * pause, 15.0)


_ENDPOINTS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT", "GOOGLE_BASE_URL", "AZURE_STORAGE_ENDPOINT")


def _open_local(folder: Path, make: bool) -> ObjectStore:
    from obstore.store import LocalStore

    if folder.exists() and not folder.is_dir():
        raise StorageError(f"{folder}: a file, not a folder")
    if not make and not folder.exists():
        raise MissingError(f"{folder}: no such folder")
    return LocalStore(folder, mkdir=make, automatic_cleanup=True)


def _read_range(file: Path, start: int, stop: int) -> bytes:
    """Read directly: the client's threads cost more than reading from the page cache."""
    with open(file, "rb") as opened:
        opened.seek(start)
        data = opened.read(stop - start)
    if not data:
        raise StorageError(f"{file}: {ENDS_EARLY}")
    return data


def _collect(chunks: Iterable[Sequence[Any]], where: str) -> dict[str, Entry]:
    """The entries of a listing by path. Raises StorageError if it does not end."""
    entries: dict[str, Entry] = {}
    for chunk in chunks:
        before = len(entries)
        for meta in chunk:
            entries[meta["path"]] = Entry(meta["path"], meta["size"], meta.get("e_tag") or "")
        if len(entries) == before and chunk:
            raise StorageError(f"{where}: the store repeats its listing after {before:,} objects")
        if len(entries) > MOST_ENTRIES:
            raise StorageError(f"{where}: lists more than {MOST_ENTRIES:,} objects; name a smaller folder")
    return entries


def _timed(chunks: Iterable[T], where: str) -> Iterator[T]:
    """The same chunks, taken by a thread. Raises UnavailableError where none comes for `LISTING_SECONDS`."""
    taken: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

    def take() -> None:
        try:
            for chunk in chunks:
                taken.put((chunk, None))
                if ended.is_set():
                    return
        except BaseException as error:  # also a panic of the client, which is no Exception
            taken.put((None, error))
        else:
            taken.put((None, None))

    ended = threading.Event()
    threading.Thread(target=take, name="listing", daemon=True).start()
    try:
        while True:
            try:
                chunk, error = taken.get(timeout=LISTING_SECONDS)
            except queue.Empty:
                raise StorageError(f"{where}: the listing made no progress for {LISTING_SECONDS:.0f} s") from None
            if error is not None:
                raise error
            if chunk is None:
                return
            yield chunk
    finally:
        ended.set()


def _slashes(path: str) -> Iterator[int]:
    end = path.rfind("/")
    while end > 0:
        yield end
        end = path.rfind("/", 0, end)


def speaks_plain_http(url: str) -> bool:
    """Whether a URL is reached without TLS, according to its scheme or the endpoint in the environment."""
    return url.startswith("http://") or any(os.environ.get(name, "").startswith("http://") for name in _ENDPOINTS)


def _open_remote(url: str) -> ObjectStore:
    from obstore.store import from_url

    scheme, _, rest = url.partition("://")
    client = CLIENT | ({"allow_http": True} if speaks_plain_http(url) else {})
    if scheme not in ("http", "https"):  # object names are not URL-encoded yet: "50% #1" is a valid name
        bucket, _, folder = rest.partition("/")
        url = f"{scheme}://{bucket}/{quote(folder)}"
    options: dict[str, Any] = {"client_options": client, "retry_config": RETRIES}
    return from_url(url, **options)


_process: int | None = None  # the process that has the client's threads


def _refuse_after_fork() -> None:
    """The client's threads do not survive a fork: a request in the child would hang."""
    global _process
    _process = _process or os.getpid()
    if _process != os.getpid():
        raise RuntimeError("storage was used before this process was forked: use the spawn or forkserver start method")
