"""A folder of image files: splits and classes from the names of its folders, captions from .txt files or manifests."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from datasets.errors import DataError
from datasets.packing.sources.files import File, find_images, is_inside, read_unchanged
from datasets.packing.sources.layout import arrange, split_of
from datasets.packing.sources.manifest import read_captions
from datasets.packing.sources.source import SPLITS, Example, Part, shuffled
from datasets.shards.index_files import Meta

HELD_OUT = 0.05  # of a folder without split folders
_NAMED = 8  # classes whose counts are listed


class ImageFolder:
    """The images below a folder, in a fixed shuffled order, their encoded bytes unchanged.

    If folders are named as splits (train with val or test, or similar names), these are the splits; `held_out`, if
    given, is then taken from train. Otherwise a fraction `held_out` (default 0.05) is held out.
    """

    splits: tuple[str, ...] = SPLITS
    parallel = True
    meta: Meta | None = None

    def __init__(
        self, folder: str, held_out: float | None = None, classes: bool = True, follow_links: bool = False
    ) -> None:
        self._root = Path(folder)
        if not self._root.is_dir():
            raise DataError(f"{folder}: no such folder")
        self._follow_links = follow_links
        files, manifests, self._skipped = find_images(self._root, follow_links)
        self._captions = self._read_captions(files, manifests)
        layout = arrange(folder, [file.path for file in files])
        for i in layout.outside:
            self._skipped.add("outside the split folders", files[i].path)
        names = layout.classes if classes else [""] * len(files)
        splits = layout.splits or {"train": list(range(len(files)))}
        if held_out is None:
            held_out = 0 if layout.splits else HELD_OUT
        if held_out and "validation" in splits:
            raise DataError(f"{folder}: has a validation folder; --held-out is for folders without one")
        if held_out:
            splits |= _hold_out(splits["train"], held_out)
        self._files: dict[str, list[tuple[File, str]]] = {}
        for split in filter(splits.get, SPLITS):
            numbers = splits[split]
            order = shuffled(len(numbers), f"folder/{split}")
            self._files[split] = [(files[numbers[i]], names[numbers[i]]) for i in order]
        self.class_names = tuple(sorted({name for files in self._files.values() for _, name in files} - {""}))
        self.name = f"images of {self._root.name}"

    def count(self, split: str) -> int:
        return len(self._files.get(split, ()))

    def part(self, split: str, start: int, stop: int) -> Part:
        numbers = {name: number for number, name in enumerate(self.class_names)}
        files = self._files[split][start:stop]
        captions = tuple(self._captions.get(file.path) for file, _ in files)
        listed = tuple((file, numbers.get(name)) for file, name in files)
        return _FilePart(self._root, self._follow_links, listed, captions if any(captions) else ())

    def found(self) -> list[str]:
        """For each split its images by format and by class; then what was skipped."""
        lines = [f"found in {self._root}:"]
        for split, files in self._files.items():
            folders = sorted({next(filter(split_of, file.path.split("/")[:-1]), "") for file, _ in files} - {""})
            kinds = Counter(file.kind for file, _ in files)
            formats = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())
            captions = sum(file.caption is not None or file.path in self._captions for file, _ in files)
            where = f" ({', '.join(folders)})" if folders else ""
            texts = f", {captions:,} captions" if captions else ""
            lines.append(f"  {split}{where}: {len(files):,} images ({formats}){_class_counts(files)}{texts}")
        unlabelled = [split for split, files in self._files.items() if not any(name for _, name in files)]
        if self.class_names and unlabelled:
            lines.append(
                f"  note: {', '.join(unlabelled)} without classes: no use for models with labels as a condition"
            )
        if self._skipped.reasons:
            lines.append(f"  skipped: {self._skipped}")
        return lines

    def _read_captions(self, files: list[File], manifests: list[str]) -> dict[str, str]:
        """The captions of manifests, by path of the image."""
        for path in manifests:
            if not self._follow_links and not is_inside(self._root / path, self._root):
                raise DataError(
                    f"{self._root / path}: is a link to a file outside the folder (--follow-links reads it)"
                )
        captions = read_captions(self._root, manifests, {file.path for file in files})
        for file in files:
            if file.caption is not None and file.path in captions:
                raise DataError(
                    f"{self._root / file.path}: has a caption in its .txt file and one in a manifest "
                    f"({', '.join(manifests)}); remove one of them"
                )
        return captions


@dataclass(frozen=True)
class _FilePart:
    root: Path
    follow_links: bool
    files: tuple[tuple[File, int | None], ...]  # with their labels
    captions: tuple[str | None, ...] = ()  # from manifests; empty: none

    def __len__(self) -> int:
        return len(self.files)

    def example(self, i: int) -> Example:
        file, label = self.files[i]
        path = self.root / file.path
        given = self.captions[i] if self.captions else None
        text = given.encode(errors="replace") if given else None
        if file.caption:
            caption = path.with_suffix(".txt")
            if not self.follow_links and not is_inside(caption, self.root):
                raise DataError(f"its caption {caption.name} is a link to a file outside the folder")
            text = read_unchanged(caption, file.caption)
        return Example(read_unchanged(path, file.stamp), label, text)

    def where(self, i: int) -> str:
        return str(self.root / self.files[i][0].path)

    def fingerprint(self) -> str:
        contents = (self.files, self.captions) if self.captions else self.files  # as earlier versions had it
        return hashlib.blake2b(repr(contents).encode(), digest_size=16).hexdigest()


def _hold_out(numbers: list[int], fraction: float) -> dict[str, list[int]]:
    shuffled_numbers = [numbers[i] for i in shuffled(len(numbers), "folder/split")]
    held = round(len(numbers) * fraction)
    return {"train": shuffled_numbers[held:], "validation": shuffled_numbers[:held]}


def _class_counts(files: list[tuple[File, str]]) -> str:
    """The images of each class, for a reader; of the largest classes if there are many."""
    counts = Counter(name for _, name in files if name)
    if not counts:
        return ", no classes"
    if len(counts) <= _NAMED:
        return f", {len(counts)} class{'es' * (len(counts) > 1)}: " + ", ".join(
            f"{name} {counts[name]:,}" for name in sorted(counts)
        )
    (large, most), (small, fewest) = counts.most_common(1)[0], counts.most_common()[-1]
    return f", {len(counts):,} classes of {fewest:,} ({small}) to {most:,} images ({large})"
