"""The index of shards. It is made once; afterwards no tar has to be parsed, and every byte can be checked.

Opening it is O(shards) and memory-mapped on a local disk; the member table of a shard is read with the shard.
`datasets.shards.index_files` has the format.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from functools import cached_property
from shlex import quote
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cluster.storage.errors import MissingError
from cluster.storage.storage import Storage, join
from datasets.errors import DataError
from datasets.images.decode import Format
from datasets.shards.column_tables import read_columns
from datasets.shards.columns import extensions_of, numbers
from datasets.shards.index_files import SCHEMA, Meta, Shard, member_file, read_index, read_table, twice_from_a_store
from datasets.shards.joined import Joins
from datasets.shards.sample_columns import has_columns
from datasets.shards.shard_list import ShardList
from datasets.shards.table_checks import check_members

if TYPE_CHECKING:  # a loader process starts sooner without pydantic
    from datasets.config import DataConfig

_NAMES_AT_ONCE = 1 << 14  # converted to Python strings at a time


class ShardFolder:
    """The shards of one folder, or some of them, with their index."""

    def __init__(self, entry: str, location: str = ""):
        self.entry, self.location = entry, location
        self.list = ShardList.parse(entry)
        url = self.list.folder
        self.url = url
        self.storage = Storage(url)
        self.index_url = location or join(url, "index")
        self._members = Storage(join(self.index_url, "members"))
        self.meta, table = read_index(url, self.index_url)
        if self.list.names:
            table = table.take(self.list.select(table.column("name").to_pylist()))
        if not table.num_rows:
            raise DataError(f"{url}: the index has no shards; run python -m jobs.index {quote(url)}")
        self.table = table.combine_chunks()

    def members(self, row: int) -> pa.Table:
        """The member table of a shard: key, and <extension>.offset, .size and .crc32 (null: no such member)."""
        return twice_from_a_store(self.index_url, lambda: self._members_of(row))

    def _members_of(self, row: int) -> pa.Table:
        name, images, size = (self.table.column(column)[row].as_py() for column in ("name", "images", "bytes"))
        try:
            table = read_table(self._members, member_file(name))
        except MissingError as error:
            raise DataError(f"{self.index_url}: the member table of {name} is missing; {self.remedy}") from error
        try:
            check_members(table, size)
        except ValueError as error:
            raise DataError(
                f"{self.index_url}: the member table of {name} is damaged ({error}); {self.remedy}"
            ) from error
        if table.num_rows != images:
            raise DataError(f"{self.index_url}: {table.num_rows} samples of {name}, expected {images}; {self.remedy}")
        return table

    def columns(self, row: int) -> pa.Table:
        """The column table of a shard, a row for each of the member table: see `datasets.shards.sample_columns`."""
        name, images = (self.table.column(column)[row].as_py() for column in ("name", "images"))
        location = Storage(self.index_url)
        try:
            table = twice_from_a_store(self.index_url, lambda: read_columns(location, name))
        except MissingError as error:
            raise DataError(f"{self.index_url}: the column table of {name} is missing; {self.remedy}") from error
        if table.num_rows != images or not has_columns(table, ()):
            raise DataError(f"{self.index_url}: the column table of {name} is damaged; {self.remedy}")
        return table

    @property
    def remedy(self) -> str:
        """The remedy for an index that does not match its shards."""
        again = f"run python -m jobs.index {quote(self.entry)}"
        return f"{again}, and select again" if self.meta.selection else again


class Index:
    """The shards of one set, or of several that are mixed, with consecutive numbers. See `Index.open` and `Index.of`.

    `counts`, int64 [S], are the images of each shard; set i has the shards set_bounds[i] to set_bounds[i + 1].
    """

    def __init__(self, sets: Sequence[Sequence[ShardFolder]], columns: Sequence[str] = ()):
        """`columns`: URLs of encoded shards that are joined to the samples."""
        self.folders = [folder for folders in sets for folder in folders]
        self.labels_differ = _label_difference(self.folders)
        """Why the images have no labels in common, though some have labels; "" if they do."""
        self.meta = _common_meta(self.folders)
        if self.labels_differ:
            self.meta = self.meta._replace(classes=0, class_names=())
        self.counts: NDArray[np.int64] = self._column("images")
        self.set_bounds = _starts([sum(folder.table.num_rows for folder in folders) for folders in sets])
        self._sets = sets
        self._starts = _starts([folder.table.num_rows for folder in self.folders])
        self.joins = Joins(self, tuple(columns))
        """The encoded shards that are joined to the samples, whose members are as their own."""

    @classmethod
    def open(
        cls, shards: str | Iterable[str], location: str | Iterable[str] = "", columns: Sequence[str] = ()
    ) -> Index:
        """Open the index of a folder, a pattern or a list of these, as one set. Raises `DataError`.

        `location`: where the indexes are, one for each; default: <folder>/index. `columns`: encoded shards to join.
        """
        return cls([_folders(shards, location)], columns)

    @classmethod
    def of(cls, config: DataConfig) -> Index:
        """Open the index of a run's training data: one set, or the sets of its mixture. Raises `DataError`."""
        if not config.mixture:
            return cls.open(config.shards, config.index, config.columns)._with_image(config.image)
        sets = [_folders(mixed.shards, mixed.index) for mixed in config.mixture]
        return cls(sets, config.columns)._with_image(config.image)

    @classmethod
    def held_out(cls, config: DataConfig) -> Index | None:
        """Open the index of a run's held-out data; None if it has none. Raises `DataError`."""
        if not config.validation:
            return None
        return cls.open(config.validation, config.validation_index, config.columns)._with_image(config.image)

    def _with_image(self, image: str) -> Index:
        """Itself. Raises `DataError` if a set is indexed for another image of each sample than `image`, if given."""
        for folder in self.folders:
            if image and folder.meta.image != image:
                which = f".{folder.meta.image}" if folder.meta.image else "the only image of each sample"
                raise DataError(
                    f"{folder.index_url}: is the index of {which}, not of data.image {image}; make another: python -m "
                    f"jobs.index {quote(folder.entry)} --image {quote(image)} --out {quote(join(folder.url, 'index-'))}"
                    f"{quote(image)}, and name it with data.index"
                )
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        folders = [[(folder.entry, folder.location) for folder in folders] for folders in self._sets]
        return _reopen, (folders, self.joins.urls)

    @property
    def url(self) -> str:
        """The URLs of the folders, for messages."""
        return ", ".join(dict.fromkeys(folder.url for folder in self.folders))

    @property
    def format(self) -> Format:
        """Shape, levels and classes of every image."""
        return self.meta.format

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return self.meta.channels

    @property
    def height(self) -> int:
        """Rows of pixels."""
        return self.meta.height

    @property
    def width(self) -> int:
        """Columns of pixels."""
        return self.meta.width

    @property
    def levels(self) -> int:
        """L: pixel values are 0..L-1."""
        return self.meta.levels

    @property
    def classes(self) -> int:
        """Number of classes; 0: no labels."""
        return self.meta.classes

    @cached_property
    def images(self) -> int:
        """M, the number of images."""
        return int(self.counts.sum())

    @cached_property
    def bytes_per_image(self) -> float:
        """Mean bytes that are read per image, joined columns included, in the shard where that is largest."""
        full = self.counts > 0
        own = float((self._column("read_bytes")[full] / self.counts[full]).max(initial=0))
        return own + self.joins.bytes_per_sample

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the relative names, counts and checksums of the shards; the same for a copy in another bucket."""
        digest = hashlib.blake2b(digest_size=16)
        for folder in self.folders:
            for batch in folder.table.select(["name"]).to_batches(max_chunksize=_NAMES_AT_ONCE):
                digest.update("\n".join([*batch.column(0).to_pylist(), ""]).encode())
            for name in ("images", "crc32"):
                digest.update(numbers(folder.table.column(name)).astype("<i8").tobytes())
            digest.update(folder.meta.image.encode())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def names(self) -> pa.ChunkedArray:
        """The names of the shards, relative to their folders."""
        return pa.chunked_array(
            [chunk for folder in self.folders for chunk in folder.table.column("name").chunks], pa.string()
        )

    @property
    def crc32(self) -> NDArray[np.uint32]:
        """uint32 [S]: the checksum of each shard's contents."""
        return self._column("crc32")

    def folder_of(self, number: int) -> tuple[ShardFolder, int]:
        """The folder of shard `number`, and its row in the folder's table."""
        i = int(np.searchsorted(self._starts, number, side="right")) - 1
        return self.folders[i], number - int(self._starts[i])

    def shard(self, number: int) -> Shard:
        """Row `number` of the index."""
        folder, row = self.folder_of(number)
        return Shard(**{name: folder.table.column(name)[row].as_py() for name in SCHEMA.names})

    def name(self, number: int) -> str:
        """The name of shard `number`, relative to its folder."""
        folder, row = self.folder_of(number)
        name: str = folder.table.column("name")[row].as_py()
        return name

    def where(self, number: int) -> str:
        """The URL of shard `number`."""
        folder, row = self.folder_of(number)
        return join(folder.url, folder.table.column("name")[row].as_py())

    def odd_shard(self) -> str:
        """The URL of the first shard whose images differ in size, among themselves or from the first shard's."""
        full = np.flatnonzero(self.counts)
        heights, widths = self._column("height")[full], self._column("width")[full]
        other = (heights == 0) | (heights != heights[0]) | (widths != widths[0])
        return self.where(int(full[other][0]))

    @cached_property
    def quarantined(self) -> int:
        """Samples of the shards that cannot be used: see `read_quarantine`. They are no part of the order."""
        return int(self._column("quarantined").sum())

    @property
    def mixed_colours(self) -> str:
        """A warning if some images are grey and others in colour, which names one of the rarer kind; else "".

        All are read with the channels of the set: grey becomes equal red, green and blue.
        """
        grey, counts = self._column("grey"), self.counts
        total = int(grey.sum())
        if total in (0, self.images):
            return ""
        few, kind = (total, "grey") if 2 * total <= self.images else (self.images - total, "in colour")
        number = int(np.flatnonzero(grey if kind == "grey" else counts - grey)[0])
        folder, row = self.folder_of(number)
        key = folder.table.column("grey_key" if kind == "grey" else "colour_key")[row].as_py()
        which = f"sample {key!r} is" if key else "its images are"
        return (
            f"{self.where(number)}: {which} {kind}, as are {few:,} of all {self.images:,} images; every image is read "
            f"with {self.channels} channels: remove those that do not belong to the set"
        )

    def members(self, number: int) -> pa.Table:
        """The member table of shard `number`: see `ShardFolder.members`."""
        folder, row = self.folder_of(number)
        return folder.members(row)

    def extensions(self, number: int) -> set[str]:
        """Of the members that samples of shard `number` have, joined ones included."""
        joined = {extension for extension in self.joins.extensions if self.joins.of(number, extension)}
        return extensions_of(self.members(number)) | joined

    def columns(self, number: int) -> pa.Table:
        """The column table of shard `number`: see `ShardFolder.columns`."""
        folder, row = self.folder_of(number)
        return folder.columns(row)

    def _column(self, name: str) -> NDArray[Any]:
        columns = [numbers(folder.table.column(name)) for folder in self.folders]
        return columns[0] if len(columns) == 1 else np.concatenate(columns)


def _folders(shards: str | Iterable[str], location: str | Iterable[str]) -> list[ShardFolder]:
    entries = [shards] if isinstance(shards, str) else list(shards)
    locations = [location] if isinstance(location, str) else list(location)
    return [ShardFolder(*each) for each in zip(entries, locations if location else [""] * len(entries), strict=True)]


def _reopen(sets: list[list[tuple[str, str]]], columns: tuple[str, ...]) -> Index:
    return Index([[ShardFolder(*folder) for folder in folders] for folders in sets], columns)


def _starts(sizes: list[int]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(np.array(sizes, dtype=np.int64))])


def _common_meta(folders: list[ShardFolder]) -> Meta:
    """The format of the images of all folders; of no size if sizes differ. Raises `DataError` if they differ else.

    `_label_difference` compares their labels.
    """
    common = folders[0].meta
    for folder in folders[1:]:
        meta = folder.meta
        for name in ("channels", "levels", "binarised"):
            ours, theirs = getattr(meta, name), getattr(common, name)
            if ours != theirs:
                shown = f"{name} {_shown(ours)} and {_shown(theirs)}"
                raise DataError(f"{folder.url} and {folders[0].url} differ and cannot be one set: {shown}")
        if (meta.height, meta.width) != (common.height, common.width):
            common = common._replace(height=0, width=0)
    return common._replace(classes=max(folder.meta.classes for folder in folders))


def _label_difference(folders: list[ShardFolder]) -> str:
    """Where labels of one folder mean something else than those of the first one; "" if they agree."""
    first = folders[0]
    for folder in folders[1:]:
        if (folder.meta.classes > 0) != (first.meta.classes > 0):
            labelled, other = (folder.url, first.url) if folder.meta.classes else (first.url, folder.url)
            return f"{labelled} has labels and {other} has none"
        if folder.meta.labels != first.meta.labels:
            places = (f"{each.url} in {each.meta.labels.shown}" for each in (folder, first))
            return f"labels are in different places: {' and '.join(places)}"
        if folder.meta.class_names != first.meta.class_names:
            names = f"{_shown(folder.meta.class_names)} and {_shown(first.meta.class_names)}"
            return f"{folder.url} and {first.url} have different classes: {names}"
    return ""


def _shown(value: object) -> str:
    return ", ".join(value) or "(none)" if isinstance(value, tuple) else str(value) or "(none)"
