"""Scan a tar for its samples (keys, offsets, sizes, checksums) and for those that cannot be used, with reasons.

Members are grouped by key and extension with webdataset's own function. Nothing is skipped silently: a sample is either
listed or bad, and members that belong to no sample are counted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from cluster.storage.storage import Storage
from datasets.errors import DataError
from datasets.images.decode import IMAGE_FORMATS, ImageHeader, read_header
from datasets.images.perceptual_hash import perceptual_hash
from datasets.shards.json_fields import field_of, parse_fields, split_source
from datasets.shards.labels import LabelSource
from datasets.shards.parquet_columns import PARQUET
from datasets.shards.tar import BrokenTarError, Member, RangeFile, TarMember, members

_INCOMPLETE = "may be incomplete: the shard cannot be read any further"
_FEW = 4  # images of a sample
CAPTION, JSON = "txt", "json"  # extensions
HASH = "phash"  # the column of perceptual hashes


class ScanOptions(NamedTuple):
    """What is read of a sample."""

    image: str = ""  # extension of the image where samples have several; "": their only one of `IMAGE_FORMATS`
    columns: tuple[str, ...] = ()  # besides those that every index has: json.FIELD, parquet, parquet.FIELD, phash
    labels: LabelSource = LabelSource()  # where labels are
    labelled: str = ""  # a sample of another shard that has a label, in words: samples without one cannot be used

    def is_image(self, extension: str) -> bool:
        """Whether a member may be the image of its sample."""
        return extension == self.image if self.image else extension in IMAGE_FORMATS

    @property
    def fields(self) -> tuple[str, ...]:
        """The columns from .json members."""
        return tuple(name for name in self.columns if split_source(name)[0] == JSON)

    @property
    def parquet(self) -> tuple[str, ...]:
        """The columns from a Parquet file beside the shard."""
        return tuple(name for name in self.columns if name.partition(".")[0] == PARQUET)

    @property
    def hashes(self) -> bool:
        """Whether perceptual hashes are a column: every image is decoded for them."""
        return HASH in self.columns


class Sample(NamedTuple):
    """The members with one key, by extension."""

    key: str
    members: dict[str, Member]
    image: str  # extension of its image
    header: ImageHeader
    label: int | str | None  # a number, or the name of a class
    caption: int | None = None  # characters of the .txt
    fields: dict[str, Any] = {}  # from the .json, by column: None where there is no such field
    phash: int | None = None  # 64 bits; None: not asked for, or the image does not decode


class BadSample(NamedTuple):
    """A sample that cannot be used."""

    key: str  # "": not one sample, but the shard from some byte on
    reason: str


class Scan(NamedTuple):
    """The contents of a tar."""

    samples: list[Sample]
    bad: list[BadSample]
    scattered: int  # samples whose members are not adjacent
    skipped: int  # members that belong to no sample: hidden, without an extension, or named like __meta__
    bytes: int  # of the whole tar
    etag: str


def scan_tar(storage: Storage, name: str, options: ScanOptions = ScanOptions()) -> Scan:  # noqa: B008  (immutable)
    """Read a whole shard and sort its samples into good and bad ones.

    Raises `DataError` if the shard is missing or changes while it is read.
    """
    source = RangeFile(storage, name)
    drafts: dict[str, _Draft] = {}
    scattered: set[str] = set()
    last, skipped, broken = "", 0, []
    try:
        for member in members(source):
            if not member.key:
                skipped += 1
                continue
            if (draft := drafts.get(member.key)) is None:
                draft = drafts[member.key] = _Draft(member.key, options)
            elif last != member.key:
                scattered.add(member.key)
            draft.add(member)
            last = member.key
    except BrokenTarError as error:
        broken.append(BadSample("", str(error)))
        cut = error.key or last  # may lack members
        if cut in drafts and not error.ended:
            drafts[cut].problem = drafts[cut].problem or _INCOMPLETE
        if not error.ended:  # members of any sample may follow
            for key in scattered:
                drafts[key].problem = drafts[key].problem or _INCOMPLETE
    labelled = next((repr(key) for key, draft in drafts.items() if draft.has_label), options.labelled)
    results = [draft.finish(labelled) for draft in drafts.values()]
    samples = [result for result in results if isinstance(result, Sample)]
    bad = [result for result in results if isinstance(result, BadSample)]
    samples.sort(key=lambda sample: sample.members[sample.image].offset)  # as they are, where members are adjacent
    return Scan(samples, bad + broken, len(scattered), skipped, source.size, source.etag)


@dataclass
class _Draft:
    """A sample whose members are being collected."""

    key: str
    options: ScanOptions
    members: dict[str, Member] = field(default_factory=dict)
    headers: dict[str, ImageHeader] = field(default_factory=dict)  # of its images
    hashes: dict[str, int] = field(default_factory=dict)  # perceptual, of its images
    errors: dict[str, str] = field(default_factory=dict)  # of images and of the member with the label
    label: int | str | None = None
    has_label: bool = False  # perhaps one that cannot be used
    caption: int | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    problem: str = ""  # of the sample as a whole

    def add(self, member: TarMember) -> None:
        extension = member.extension
        if extension in self.members:
            self.problem = self.problem or f"{f'{self.key}.{extension}'!r} is repeated"
            return
        self.members[extension] = member.place
        if member.problem:
            self.problem = self.problem or member.problem
            return
        try:
            self._read(extension, member.data)
        except DataError as error:
            self.errors[extension] = f"{f'{self.key}.{extension}'!r}: {error}"

    def _read(self, extension: str, data: memoryview) -> None:
        options = self.options
        if options.is_image(extension):
            self.headers[extension] = read_header(data, extension.rpartition(".")[2])
            if options.hashes:
                with contextlib.suppress(DataError):  # jobs.verify finds those that do not decode
                    self.hashes[extension] = perceptual_hash(bytes(data))
        elif extension == CAPTION:
            self.caption = len(str(data, "utf-8", "replace").strip())
        elif extension == JSON and options.fields:
            self.fields = _fields(data, options.fields)
        if extension == options.labels.member:
            self.has_label = not options.labels.place
            self.label = options.labels.read(data)
            self.has_label = self.label is not None

    def finish(self, labelled: str) -> Sample | BadSample:
        """The sample, or why it cannot be used. `labelled`: a sample with a label, in words, if any has one."""
        found = [name for name in self.members if self.options.is_image(name)]
        reason = self.problem
        if not reason and len(found) != 1:
            reason = _no_image(self.key, self.members, found, self.options.image)
        labels = self.options.labels
        if not reason:
            reason = next((self.errors[name] for name in (*found, labels.member) if name in self.errors), "")
        if not reason and labelled and not self.has_label:
            reason = f"has no {labels.shown}, but {labelled} has one"
        if reason:
            return BadSample(self.key, reason)
        image, more = found[0], (self.label, self.caption, self.fields, self.hashes.get(found[0]))
        return Sample(self.key, self.members, image, self.headers[image], *more)


def _fields(data: memoryview, columns: tuple[str, ...]) -> dict[str, Any]:
    """The values of columns from a .json member; none if it cannot be read."""
    try:
        value = parse_fields(data)
    except ValueError:
        return {}
    return {name: field_of(value, split_source(name)[1]) for name in columns}


def _no_image(key: str, members: Iterable[str], images: list[str], image: str) -> str:
    """Why a sample has no image or several, and how to rename or choose."""
    names = list(members)
    found = ", ".join(f".{name}" for name in names[:8]).encode("unicode_escape").decode()
    found += ", ..." if len(names) > 8 else ""
    if image:
        return f"has no .{image} among its members ({found})"
    if len(images) > 1:
        return f"has {len(images)} images among its members ({found}): --image {images[0]} chooses one"
    dotted = [name for name in names if name.rpartition(".")[2] in IMAGE_FORMATS]
    if dotted:
        stem, _, extension = dotted[0].rpartition(".")
        base = key.rpartition("/")[2]
        renamed = f"{base}.{dotted[0]} to {base}_{stem.replace('.', '_')}.{extension}"
        choice = f", or choose one by --image {dotted[0]}" if len(dotted) <= _FEW else ""
        return (
            f"has no image among its members ({found}): a key ends at the first dot of a name, as in webdataset; "
            f"rename such as {renamed}{choice}"
        )
    return f"has no image among its members ({found}); images end in {', '.join(f'.{name}' for name in IMAGE_FORMATS)}"
