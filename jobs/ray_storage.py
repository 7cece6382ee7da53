"""Our object stores as Ray sees them: a pyarrow file system over the same client and credentials."""

from __future__ import annotations

from urllib.parse import urlparse

import pyarrow.fs
from obstore.fsspec import FsspecStore

from cluster.storage import CLIENT, RETRIES, is_local, speaks_plain_http


def filesystem_of(url: str) -> tuple[pyarrow.fs.FileSystem | None, str]:
    """The file system of a URL, and the path in it; None for this machine's disks, which Ray knows by itself."""
    if is_local(url):
        return None, url
    parsed = urlparse(url)
    client = CLIENT | ({"allow_http": True} if speaks_plain_http(url) else {})
    store = FsspecStore(parsed.scheme, client_options=client, retry_config=RETRIES)  # type: ignore[call-overload]
    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(store)), parsed.netloc + parsed.path
