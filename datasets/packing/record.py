"""What a split was packed from: <split>/index/packed.json, by which "already packed" is known to be true."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from cluster.storage.errors import MissingError
from cluster.storage.storage import Storage
from datasets.errors import DataError
from datasets.packing.write import BadImage

_FILE = "index/packed.json"
_VERSION = 1


class Record(NamedTuple):
    """Source and options of a packed split."""

    source: str  # its name, for a reader
    images: str  # fingerprint of all its images, labels and captions
    options: dict[str, Any]  # how they are written
    bad: tuple[BadImage, ...] = ()  # images that were left out
    transparent: int = 0  # images that were composited on white

    def write(self, folder: Storage) -> None:
        """Write the record of a split."""
        folder.write(_FILE, (json.dumps({"version": _VERSION} | self._asdict(), indent=1) + "\n").encode())

    def check(self, other: Record, url: str) -> None:
        """Raise `DataError` if `other`, found at `url`, is of other images or options."""
        different = [name for name in self.options if self.options[name] != other.options.get(name)]
        if self.images != other.images:
            different.insert(0, "images (names, sizes, times, labels or captions)")
        if different:
            raise DataError(
                f"{url}: already packed from {other.source} with other {', '.join(different)}; "
                "give another --out, or delete it first"
            )


def read_record(folder: Storage) -> Record | None:
    """The record of a split; None if an earlier version packed it. Raises `DataError` if it is damaged."""
    try:
        fields = json.loads(folder.read(_FILE))
        if fields.pop("version") != _VERSION:
            raise ValueError("another version")
        bad = tuple(BadImage(*entry) for entry in fields.pop("bad"))
        return Record(bad=bad, **fields)
    except MissingError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{folder.url}/{_FILE}: damaged ({error}); delete the folder and pack again") from error
