"""Scan a tar for its samples (keys, offsets, sizes, checksums) and for those that cannot be used, with reasons.

Members are grouped by key and extension with webdataset's own function. Nothing is skipped silently: a sample is either
listed or bad, and members that belong to no sample are counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from cluster.storage.storage import Storage
from datasets.errors import DataError
from datasets.images.decode import IMAGE_FORMATS, LABEL, decode_label, image_size
from datasets.shards.tar import BrokenTarError, Member, RangeFile, TarMember, members

_INCOMPLETE = "may be incomplete: the shard cannot be read any further"
_FEW = 4  # images of a sample


class Sample(NamedTuple):
    """The members with one key, by extension."""

    key: str
    members: dict[str, Member]
    image: str  # extension of its image
    height: int  # of the upright image, pixels
    width: int
    channels: int
    label: int | None


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


def scan_tar(storage: Storage, name: str, image: str = "") -> Scan:
    """Read a whole shard and sort its samples into good and bad ones.

    `image`: the extension of the member that is the image, where samples have several; "": their only one of
    `IMAGE_FORMATS`. Raises `DataError` if the shard is missing or changes while it is read.
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
                draft = drafts[member.key] = _Draft(member.key)
            elif last != member.key:
                scattered.add(member.key)
            draft.add(member, image)
            last = member.key
    except BrokenTarError as error:
        broken.append(BadSample("", str(error)))
        cut = error.key or last  # may lack members
        if cut in drafts and not error.ended:
            drafts[cut].problem = drafts[cut].problem or _INCOMPLETE
        if not error.ended:  # members of any sample may follow
            for key in scattered:
                drafts[key].problem = drafts[key].problem or _INCOMPLETE
    labelled = next((key for key, draft in drafts.items() if LABEL in draft.members), "")
    results = [draft.finish(image, labelled) for draft in drafts.values()]
    samples = [result for result in results if isinstance(result, Sample)]
    bad = [result for result in results if isinstance(result, BadSample)]
    samples.sort(key=lambda sample: sample.members[sample.image].offset)  # as they are, where members are adjacent
    return Scan(samples, bad + broken, len(scattered), skipped, source.size, source.etag)


@dataclass
class _Draft:
    """A sample whose members are being collected."""

    key: str
    members: dict[str, Member] = field(default_factory=dict)
    shapes: dict[str, tuple[int, int, int]] = field(default_factory=dict)  # (height, width, channels) of its images
    errors: dict[str, str] = field(default_factory=dict)  # of images and the label
    label: int | None = None
    problem: str = ""  # of the sample as a whole

    def add(self, member: TarMember, image: str) -> None:
        extension = member.extension
        if extension in self.members:
            self.problem = self.problem or f"{f'{self.key}.{extension}'!r} is repeated"
            return
        self.members[extension] = member.place
        if member.problem:
            self.problem = self.problem or member.problem
            return
        try:
            if extension in ((image,) if image else IMAGE_FORMATS):
                self.shapes[extension] = image_size(member.data, extension.rpartition(".")[2])
            elif extension == LABEL:
                self.label = decode_label(member.data)
        except DataError as error:
            self.errors[extension] = f"{f'{self.key}.{extension}'!r}: {error}"

    def finish(self, image: str, labelled: str) -> Sample | BadSample:
        """The sample, or why it cannot be used. `labelled`: key of a sample of the shard with a label, if any has."""
        found = [name for name in self.members if name in ((image,) if image else IMAGE_FORMATS)]
        reason = self.problem
        if not reason and len(found) != 1:
            reason = _no_image(self.key, self.members, found, image)
        if not reason:
            reason = next((self.errors[name] for name in (*found, LABEL) if name in self.errors), "")
        if not reason and labelled and LABEL not in self.members:
            reason = f"has no .{LABEL}, but {labelled!r} has one"
        if reason:
            return BadSample(self.key, reason)
        return Sample(self.key, self.members, found[0], *self.shapes[found[0]], self.label)


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
