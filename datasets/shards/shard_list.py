"""An entry of `data.shards`: a folder, or those shards of a folder that match a pattern."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from cluster.storage.storage import Storage, is_local
from datasets.errors import DataError

_WILDCARD = re.compile(r"[{*?\[]")


class ShardList(NamedTuple):
    """Shards of one folder."""

    folder: str  # URL
    names: tuple[str, ...]  # names, or patterns with *, ? and [...]; empty: all of the folder

    @classmethod
    def parse(cls, url: str) -> ShardList:
        """From the URL of a folder or a .tar, or a pattern with braces or wildcards. Raises `DataError`.

        A folder or file that exists under exactly this name is meant before a pattern is.
        """
        folder, name = _split(url)
        if not name:
            return cls(folder, ())
        if not folder:
            raise DataError(f"{url}: a pattern needs a folder before its first brace or wildcard")
        return cls(folder, (name,) if _is_local_file(url) else tuple(_expand(name, url)))

    def select(self, names: list[str]) -> list[int]:
        """The places in `names` of the shards of this list, in the order of `names`.

        Raises `DataError` if a shard given by its full name is missing, or none matches.
        """
        if not self.names:
            return list(range(len(names)))
        patterns = [name for name in set(self.names).difference(names) if _WILDCARD.search(name)]
        wanted = set(self.names) - set(patterns)
        if missing := sorted(wanted - set(names)):
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise DataError(f"{self.folder}: no shard {missing[0]}{more} in the index or the folder")
        places = [
            place
            for place, name in enumerate(names)
            if name in wanted or any(fnmatchcase(name, pattern) for pattern in patterns)
        ]
        if not places:
            raise DataError(f"{self.folder}: no folder or shard has this name, and none matches {', '.join(patterns)}")
        return places


def _split(url: str) -> tuple[str, str]:
    """A folder, and the name of a shard or a pattern in it; "" for all of the folder."""
    scheme, separator, path = url.rpartition("://")
    parts = path.rstrip("/").split("/")
    for number, part in enumerate(parts):
        if not _WILDCARD.search(part):
            continue
        last = number == len(parts) - 1 and part.endswith(".tar") and not is_local(url)  # a pattern, without a request
        if last or not _is_folder(scheme + separator + "/".join(parts[: number + 1])):
            return scheme + separator + "/".join(parts[:number]), "/".join(parts[number:])
    whole = scheme + separator + "/".join(parts)
    if parts[-1].endswith(".tar") and not (is_local(url) and Path(whole).is_dir()):
        folder, _, name = whole.rpartition("/")
        return folder, name
    return whole, ""


def _is_folder(url: str) -> bool:
    if is_local(url):
        return Path(url.removeprefix("file://")).is_dir()
    storage = Storage(url)
    if storage.exists("index/index.json"):
        return True
    return not url.startswith(("http://", "https://")) and next(storage.list(), None) is not None


def _is_local_file(url: str) -> bool:
    return is_local(url) and Path(url.removeprefix("file://")).is_file()


def _expand(pattern: str, url: str) -> list[str]:
    from braceexpand import braceexpand

    try:
        return list(braceexpand(pattern))
    except ValueError as error:
        raise DataError(f"{url}: the braces of the pattern do not match") from error
