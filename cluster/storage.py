"""One folder at a URL, the same on a local disk and in an object store.

Shards, indexes, runs and checkpoints are all reached through `Storage`: a plain path, file://, s3://, gs://, az:// or
(read only, no listing) http(s)://. The client is obstore; credentials and endpoints come from the environment, as the
providers' own tools read them (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, GOOGLE_APPLICATION_CREDENTIALS, AZURE_...).
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # importing obstore is put off until a folder is opened
    from obstore.store import ObjectStore

RETRIES: dict[str, Any] = {"max_retries": 8, "retry_timeout": timedelta(minutes=3)}
# `timeout` covers a whole body and would cut long downloads; `read_timeout` notices a connection that has gone quiet.
CLIENT: dict[str, Any] = {"timeout": "30m", "connect_timeout": "10s", "read_timeout": "30s"}


class StorageError(OSError):
    """The store refused or failed; the message is one line for a person and names the URL."""


class MissingError(StorageError, FileNotFoundError):
    """There is no such object."""


class Entry(NamedTuple):
    """An object of a folder."""

    path: str  # relative to the folder
    size: int  # bytes
    etag: str  # the store's fingerprint of the content; "" where it has none


def is_local(url: str) -> bool:
    """Whether a URL is a path on this machine's disks."""
    return "://" not in url or url.startswith("file://")


def absolute(url: str) -> str:
    """The URL with a relative local path made absolute, so that it means the same in every process of a job."""
    if not is_local(url):
        return url.rstrip("/")
    return str(Path(url.removeprefix("file://")).absolute())


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

        with self._told(path):
            return obstore.get(self._store(), path).bytes().to_bytes()

    def read_range(self, path: str, start: int, stop: int) -> memoryview:
        """The bytes [start, stop) of an object; fewer if it ends before."""
        import obstore

        with self._told(path):
            return memoryview(obstore.get_range(self._store(), path, start=start, end=stop))

    def stat(self, path: str) -> Entry | None:
        """Size and etag of an object, or None if there is none."""
        import obstore

        try:
            with self._told(path):
                meta = obstore.head(self._store(), path)
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
        with self._told(folder):
            prefix = folder.strip("/") + "/" if folder else None
            metas = [meta for chunk in obstore.list(self._store(), prefix) for meta in chunk]
        for meta in sorted(metas, key=lambda meta: meta["path"]):
            yield Entry(meta["path"], meta["size"], meta.get("e_tag") or "")

    # ---- writing

    def write(self, path: str, data: bytes | memoryview | Path) -> None:
        """Put an object in one piece (a reader sees the old one or the new one), from bytes or from a local file."""
        self._put(path, data, "overwrite")

    def create(self, path: str, data: bytes) -> bool:
        """Put an object only if there is none (If-None-Match: *). False if there is one already: somebody was first."""
        from obstore.exceptions import AlreadyExistsError

        try:
            self._put(path, data, "create")
        except StorageError as error:
            if isinstance(error.__cause__, AlreadyExistsError):
                return False
            raise
        return True

    def delete(self, path: str) -> None:
        """Remove an object; nothing happens if there is none."""
        import obstore

        with contextlib.suppress(MissingError), self._told(path):
            obstore.delete(self._store(), path)

    def _put(self, path: str, data: bytes | memoryview | Path, mode: Any) -> None:
        import obstore

        with self._told(path):
            # A small object is one request: only that is atomic under If-None-Match. A file goes up in parts.
            obstore.put(self._store(make=True), path, data, mode=mode, use_multipart=isinstance(data, Path) or None)

    # ---- the client

    def _store(self, make: bool = False) -> ObjectStore:
        if self._opened is None:
            from obstore.store import LocalStore, from_url

            if is_local(self.url):
                if not make and not Path(self.url).is_dir():
                    raise MissingError(f"{self.url}: there is no such folder")
                self._opened = LocalStore(self.url, mkdir=make)
            else:
                plain = any(os.environ.get(name, "").startswith("http://") for name in _ENDPOINTS)
                client = CLIENT | ({"allow_http": True} if plain or self.url.startswith("http://") else {})
                with self._told(""):
                    self._opened = from_url(self.url, client_options=client, retry_config=RETRIES)  # type: ignore[call-overload]
        return self._opened

    @contextlib.contextmanager
    def _told(self, path: str) -> Iterator[None]:
        """Turn the client's errors into one line that names the URL."""
        from obstore import exceptions

        where = join(self.url, path) if path else self.url
        try:
            yield
        except StorageError:
            raise
        except (exceptions.NotFoundError, FileNotFoundError) as error:
            reason = "there is no such bucket" if "NoSuchBucket" in str(error) else "there is no such object"
            raise MissingError(f"{where}: {reason}") from error
        except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError, PermissionError) as error:
            raise StorageError(f"{where}: access denied; check the credentials in the environment") from error
        except (exceptions.BaseError, OSError, ValueError) as error:
            raise StorageError(f"{where}: {_reason(error)}") from error


_ENDPOINTS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT", "GOOGLE_BASE_URL", "AZURE_STORAGE_ENDPOINT")


def _reason(error: BaseException) -> str:
    """The client's message in one line, without its nested debug print."""
    text = str(error).split("Debug source:")[0].strip()
    return re.sub(r"\s+", " ", text)[:300] or type(error).__name__
