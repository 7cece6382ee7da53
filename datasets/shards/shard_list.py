"""An entry of `data.shards`: a folder, or those shards of a folder that match a pattern."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import NamedTuple

from datasets.errors import DataError

_WILDCARD = re.compile(r"[{*?\[]")


class ShardList(NamedTuple):
    """Shards of one folder."""

    folder: str  # URL
    names: tuple[str, ...]  # names, or patterns with *, ? and [...]; empty: all of the folder

    @classmethod
    def parse(cls, url: str) -> ShardList:
        """From the URL of a folder or a .tar, or a pattern with braces or wildcards. Raises `DataError`."""
        match = _WILDCARD.search(url)
        if not match and not url.endswith(".tar"):
            return cls(url.rstrip("/"), ())
        folder, _, _ = url[: match.start() if match else len(url)].rpartition("/")
        if not folder:
            raise DataError(f"{url}: a pattern needs a folder before its first brace or wildcard")
        return cls(folder, tuple(_expand(url[len(folder) + 1 :], url)))

    def select(self, names: list[str]) -> list[int]:
        """The places in `names` of the shards of this list, in the order of `names`.

        Raises `DataError` if a shard given by its full name is missing, or none matches.
        """
        if not self.names:
            return list(range(len(names)))
        patterns = [name for name in self.names if _WILDCARD.search(name)]
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
            raise DataError(f"{self.folder}: no shard matches {', '.join(patterns)}")
        return places


def _expand(pattern: str, url: str) -> list[str]:
    from braceexpand import braceexpand

    try:
        return list(braceexpand(pattern))
    except ValueError as error:
        raise DataError(f"{url}: the braces of the pattern do not match") from error
