"""Captions from metadata.csv and metadata.jsonl beside images."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from datasets.errors import DataError
from datasets.packing.pack import pack
from datasets.packing.sources.folder import ImageFolder
from tests.datasets.small_sets import png


@pytest.fixture
def pictures(tmp_path) -> Path:
    root = tmp_path / "pictures"
    for number in range(6):
        path = root / ("train" if number < 4 else "test") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number))
    return root


def packed(root: Path, out: Path) -> dict[str, str]:
    """The caption of each packed image that has one, by split and place."""
    pack(ImageFolder(str(root)), str(out))
    texts = {}
    for path in sorted(out.glob("*/*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".txt"):
                    texts[f"{path.parent.name}/{member.name}"] = tar.extractfile(member).read().decode()
    return texts


def test_image_folders_of_hugging_face_have_a_manifest_in_each_split(pictures, tmp_path):
    (pictures / "train" / "metadata.csv").write_text(
        'file_name,text,width\n0.png,"a lock, ""outlined""",4\n1.png,two\nlines,4\n'.replace(
            "two\nlines", '"two\nlines"'
        )
        + "2.png,,4\n",
        encoding="utf-8-sig",
    )
    (pictures / "test" / "metadata.jsonl").write_text(
        json.dumps({"file_name": "4.png", "text": "ein Schloß", "objects": [1]})
        + "\n\n"
        + json.dumps({"file_name": "5.png", "text": None})
    )
    found = "\n".join(ImageFolder(str(pictures)).found())
    assert "train (train): 4 images (4 png), no classes, 2 captions" in found
    assert "test (test): 2 images (2 png), no classes, 1 captions" in found
    assert sorted(packed(pictures, tmp_path / "out").values()) == ['a lock, "outlined"', "ein Schloß", "two\nlines"]


def test_paths_are_relative_to_the_manifest_and_a_changed_caption_is_another_set(pictures, tmp_path):
    rows = [{"image": f"train/{number}.png", "caption": f"number {number}"} for number in range(4)]
    manifest = pictures / "captions.jsonl"
    manifest.write_text("\n".join(map(json.dumps, rows)))
    assert sorted(packed(pictures, tmp_path / "out").values()) == [f"number {number}" for number in range(4)]
    before = ImageFolder(str(pictures)).part("train", 0, 4).fingerprint()
    manifest.write_text(manifest.read_text().replace("number 3", "number three"))
    assert ImageFolder(str(pictures)).part("train", 0, 4).fingerprint() != before
    with pytest.raises(DataError):
        packed(pictures, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metadata.csv", "file_name,text\n9.png,a\n", "row 1: '9.png' is not an image in this folder"),
        ("metadata.csv", "file_name,text\n../test/4.png,a\n", "row 1: '../test/4.png' is not a path below"),
        ("metadata.csv", "file_name,text\n/etc/passwd,a\n", "is not a path below the folder of the manifest"),
        ("metadata.csv", "file_name,text\n0.png,a\n0.png,b\n", "row 2: '0.png' has another caption before"),
        ("metadata.csv", "file_name,label\n0.png,a\n", r"no column for the caption .*it has file_name, label"),
        ("metadata.csv", "name,text\n0.png,a\n", r"no column for the image \(file_name, image"),
        ("metadata.csv", "file_name,text\n0.png\n", "row 1: not as many values as the header has names"),
        ("metadata.csv", "file_name,text\n0.png,a,b\n", "row 1: not as many values as the header has names"),
        ("metadata.csv", 'file_name,text\n0.png,"a\n', "not CSV"),
        ("metadata.jsonl", '{"file_name": "0.png", "text": 5}', "row 1: text is not a text"),
        ("metadata.jsonl", '{"file_name": "0.png", "text": "a"}\n{"file', "row 2: not JSON"),
        ("metadata.jsonl", "[1]", "row 1: not a JSON object"),
        ("metadata.jsonl", "[" * 100_000, "row 1: not JSON"),
    ],
)
def test_manifests_with_errors_are_refused_by_file_and_row(pictures, name, text, message):
    (pictures / "train" / name).write_text(text)
    with pytest.raises(DataError, match=message) as error:
        ImageFolder(str(pictures))
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_other_manifests_that_cannot_be_read_are_refused(pictures, tmp_path):
    (pictures / "train" / "metadata.csv").write_bytes(b"file_name,text\n0.png,\xff\n")
    with pytest.raises(DataError, match="not UTF-8"):
        ImageFolder(str(pictures))
    (pictures / "train" / "metadata.csv").write_text("file_name,text\n0.png,a\n")
    (pictures / "train" / "0.txt").write_text("b")
    with pytest.raises(DataError, match=r"0.png: has a caption in its .txt file and one in a manifest"):
        ImageFolder(str(pictures))
    (pictures / "train" / "0.txt").unlink()
    outside = tmp_path / "outside.csv"
    (pictures / "train" / "metadata.csv").rename(outside)
    (pictures / "train" / "metadata.csv").symlink_to(outside)
    with pytest.raises(DataError, match="is a link to a file outside the folder"):
        ImageFolder(str(pictures))
