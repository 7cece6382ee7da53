"""A folder of image files: classes from the names of its folders, captions from .txt files next to the images."""

from __future__ import annotations

from pathlib import Path

from datasets.errors import DataError
from datasets.images.decode import IMAGE_FORMATS
from datasets.packing.sources.source import SPLITS, Example, shuffled
from datasets.shards.index_files import Meta

SPLIT_NAMES = {"train": ("train", "training"), "validation": ("validation", "val", "valid", "test")}


class ImageFolder:
    """The images below a folder, in a fixed shuffled order, their encoded bytes unchanged.

    If the folder has train/ and validation/ (or val/, test/), these are the splits; otherwise a fraction is held out.
    If images have two or more different parent folders, these are the classes, sorted by name.
    """

    parallel = True
    meta: Meta | None = None

    def __init__(self, folder: str, held_out: float = 0.05):
        root = Path(folder)
        if not root.is_dir():
            raise DataError(f"{folder}: no such folder")
        roots = {split: _first_folder(root, names) for split, names in SPLIT_NAMES.items()}
        if all(roots.values()):
            self._files = {split: _images(place or root) for split, place in roots.items()}
        else:
            files = _images(root)
            files = [files[i] for i in shuffled(len(files), "folder/split")]
            held = round(len(files) * held_out)
            self._files = {"train": files[held:], "validation": files[:held]}
        classes = sorted({path.parent.name for files in self._files.values() for path in files})
        self.class_names = tuple(classes) if len(classes) > 1 else ()
        self.name = f"images of {root.name}"
        self._orders = {split: shuffled(self.count(split), f"folder/{split}") for split in SPLITS}

    def count(self, split: str) -> int:
        return len(self._files[split])

    def example(self, split: str, i: int) -> Example:
        path = self._files[split][self._orders[split][i]]
        label = self.class_names.index(path.parent.name) if self.class_names else None
        caption = path.with_suffix(".txt")
        text = caption.read_bytes() if caption.is_file() else None
        return Example(path.read_bytes(), label, path.suffix[1:].lower(), text)


def _first_folder(root: Path, names: tuple[str, ...]) -> Path | None:
    return next((root / name for name in names if (root / name).is_dir()), None)


def _images(root: Path) -> list[Path]:
    files = [path for path in root.rglob("*") if path.suffix[1:].lower() in IMAGE_FORMATS and path.is_file()]
    if not files:
        raise DataError(f"{root}: no images ({', '.join(IMAGE_FORMATS)}) in this folder")
    return sorted(files)
