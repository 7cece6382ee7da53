"""What an entry of `data.shards` names: a folder, or some of a folder's shards by a pattern."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import NamedTuple

from datasets.errors import DataError

_MANY = re.compile(r"[{*?\[]")


class ShardList(NamedTuple):
    """Shards of one folder."""

    folder: str  # URL
    names: tuple[str, ...]  # of the folder, or patterns with *, ? and [...]; empty: all

    @classmethod
    def parse(cls, url: str) -> ShardList:
        """From a folder's URL, one .tar, a brace pattern or one with wildcards. Raises `DataError`."""
        match = _MANY.search(url)
        if not match and not url.endswith(".tar"):
            return cls(url.rstrip("/"), ())
        folder, _, _ = url[: match.start() if match else len(url)].rpartition("/")
        if not folder:
            raise DataError(f"{url}: a pattern needs a folder before its first brace or wildcard")
        return cls(folder, tuple(_expand(url[len(folder) + 1 :], url)))

    def select(self, names: list[str]) -> list[int]:
        """The places in `names` of the shards meant, in the order of `names`.

        Raises `DataError` where one that is asked for by its full name is not there, or none is.
        """
        if not self.names:
            return list(range(len(names)))
        patterns = [name for name in self.names if _MANY.search(name)]
        wanted = set(self.names) - set(patterns)
        if missing := sorted(wanted - set(names)):
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise DataError(f"{self.folder}: there is no shard {missing[0]}{more} in the index or the folder")
        places = [
            place
            for place, name in enumerate(names)
            if name in wanted or any(fnmatchcase(name, pattern) for pattern in patterns)
        ]
        if not places:
            raise DataError(f"{self.folder}: no shard matches {', '.join(patterns)}")
        return places


def _expand(pattern: str, url: str) -> list[str]:
    from braceexpand import braceexpand

    try:
        return list(braceexpand(pattern))
    except ValueError as error:
        raise DataError(f"{url}: the braces of the pattern do not match") from error
