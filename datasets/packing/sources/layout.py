"""Which splits and classes the folders of a set mean: a function of the paths of its images alone.

train/cat/1.png, val/cat/2.png        splits and classes
cat/train/1.png, cat/test/2.png       the same
train/n01443537/images/1.JPEG         the class is n01443537
photos/1.png                          no class
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from datasets.errors import DataError

Folders = tuple[str, ...]  # names from the outermost to the innermost

_SPLIT_NAMES = {
    "train": "train|training|trn",
    "validation": "validation|valid|val|dev|eval|evaluation|holdout|held[-_ ]?out",
    "test": "test|testing|tst",
}
_SUFFIX = r"([-_ .]?(set|images?|imgs?|data|split|\d{4}))*"
_SPLITS = {split: re.compile(f"({names}){_SUFFIX}") for split, names in _SPLIT_NAMES.items()}
_CONTAINERS = frozenset({"images", "image", "imgs", "img", "jpegimages"})


class Layout(NamedTuple):
    """Splits and classes of the images, by their numbers in the given order."""

    splits: dict[str, list[int]]  # of train, validation and test those that have folders; empty: no split folders
    classes: list[str]  # of each image; "": none
    outside: list[int]  # images in none of the split folders


def split_of(name: str) -> str:
    """The split that a folder's name means: "train", "validation" or "test"; "" for other names."""
    return next((split for split, pattern in _SPLITS.items() if pattern.fullmatch(name.lower())), "")


def arrange(root: str, paths: Sequence[str]) -> Layout:
    """Sort images, by their paths relative to `root`, into splits and classes. Raises `DataError`."""
    parents = [tuple(path.split("/")[:-1]) for path in paths]
    splits, outside = _splits(root, parents)
    members = splits or {"": list(range(len(paths)))}
    below = [tuple(name for name in folders if not (splits and split_of(name))) for folders in parents]
    common = _common([below[i] for numbers in members.values() for i in numbers])
    rests = {split: {i: below[i][common:] for i in numbers} for split, numbers in members.items()}
    classes = [""] * len(paths)
    for i, name in _classes(rests).items():
        classes[i] = name
    if len(set(classes) - {""}) < 2:
        classes = [""] * len(paths)
    for numbers in members.values():
        _check_complete(root, paths, classes, numbers)
    return Layout(splits, classes, outside)


def _splits(root: str, parents: Sequence[Folders]) -> tuple[dict[str, list[int]], list[int]]:
    """The images of each split, by the outermost folder that is named as one; and the images in none."""
    found: dict[str, list[int]] = defaultdict(list)
    names: dict[str, str] = {}
    for i, folders in enumerate(parents):
        name = next(filter(split_of, folders), "")
        found[split_of(name)].append(i)
        names.setdefault(split_of(name), name)
    outside = found.pop("", [])
    if "train" in found and len(found) > 1:
        return {split: found[split] for split in _SPLIT_NAMES if split in found}, outside
    held = [split for split in found if split != "train"]
    if held and (outside or len(held) > 1):
        raise DataError(f"{root}: has {names[held[0]]}/, but no train/ beside it: rename it, or pack one folder inside")
    return {}, []


def _classes(rests: dict[str, dict[int, Folders]]) -> dict[int, str]:
    """The class of each image: the outermost folder, below its split, that holds images itself."""
    named = {split: _by_folder(folders) for split, folders in rests.items()}
    known = Counter(name for classes in named.values() for name in set(classes.values()) - {""})
    for split, classes in named.items():
        (only,) = set(classes.values()) if len(set(classes.values())) == 1 else ("",)
        if only and len(named) > 1 and known[only] == 1:  # train/cat, train/dog, val/pictures: no class
            named[split] = dict.fromkeys(classes, "")
    return {i: name for classes in named.values() for i, name in classes.items()}


def _by_folder(folders: dict[int, Folders]) -> dict[int, str]:
    trimmed = {i: _without_containers(names) for i, names in folders.items()}
    last = {names[-1:] for names in trimmed.values()}
    depth = {len(names) for names in trimmed.values()}
    if len(last) == 1 and min(depth) > 1:  # every image in <class>/pictures
        trimmed = {i: names[:-1] for i, names in trimmed.items()}
    holding = set(trimmed.values()) - {()}
    own = {i: _outermost(names, holding) for i, names in trimmed.items()}
    if _ambiguous(own.values()):  # bottle/good, cable/good: the classes are bottle and cable
        common = _common([names[:-1] for names in own.values() if names])
        return {i: names[common] if names else "" for i, names in own.items()}
    return {i: names[-1] if names else "" for i, names in own.items()}


def _without_containers(names: Folders) -> Folders:
    while names and names[-1].lower() in _CONTAINERS:
        names = names[:-1]
    return names


def _outermost(names: Folders, holding: set[Folders]) -> Folders:
    """The outermost of the folders on a path that holds images itself."""
    return next((names[:depth] for depth in range(1, len(names) + 1) if names[:depth] in holding), ())


def _ambiguous(own: Iterable[Folders]) -> bool:
    return any(count > 1 for count in Counter(names[-1] for names in set(own) if names).values())


def _common(paths: Sequence[Folders]) -> int:
    """The number of outermost folders that all paths share."""
    depth = 0
    while all(len(names) > depth for names in paths) and len({names[depth] for names in paths}) == 1:
        depth += 1
    return depth


def _check_complete(root: str, paths: Sequence[str], classes: list[str], numbers: list[int]) -> None:
    """Raise `DataError` if some images of a split have a class and others do not."""
    without = [i for i in numbers if not classes[i]]
    if without and len(without) < len(numbers):
        some = sorted({classes[i] for i in numbers} - {""})[:3]
        raise DataError(
            f"{root}: {len(without):,} images such as {paths[without[0]]} have no class, beside folders of classes "
            f"({', '.join(some)}): move them, or pack without classes by --no-classes"
        )
