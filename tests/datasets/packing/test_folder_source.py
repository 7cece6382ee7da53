"""Pack a folder of image files: classes, captions, sizes, and an interrupted run that is continued."""

from __future__ import annotations

import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.config import DataConfig
from datasets.errors import DataError
from datasets.loading.build import evaluation_batches
from datasets.packing.encoding import Encoding
from datasets.packing.pack import BadImagesError, PackOptions, pack
from datasets.packing.sources.folder import ImageFolder
from datasets.packing.write import ShardJob, write_shard
from datasets.shards.index import Index
from tests.datasets.small_sets import number_of, png


@pytest.fixture
def pictures(tmp_path) -> Path:
    """40 images in two folders, cat (even numbers) and dog; number 0 has a caption."""
    root = tmp_path / "pictures"
    for number in range(40):
        path = root / ("dog" if number % 2 else "cat") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number))
    (root / "cat" / "0.txt").write_text("nought")
    return root


def contents(url: str) -> dict[int, int]:
    """The number in each image, and its label; 0 without classes."""
    with evaluation_batches(DataConfig(shards=url, workers=0), Index.open(url), batch=50) as batches:
        batch = next(batches)
    labels = batch.conditions.get("label", torch.zeros(50, dtype=torch.int64))
    kept = zip(batch.images[batch.weights > 0], labels[batch.weights > 0], strict=True)
    return {number_of(image.numpy()): int(label) for image, label in kept}


def test_folders_are_the_classes_and_a_fraction_is_held_out(pictures, tmp_path):
    packed = pack(ImageFolder(str(pictures), held_out=0.25), str(tmp_path / "out"))
    assert [(split.split, split.images) for split in packed] == [("train", 30), ("validation", 10)]
    both = contents(f"{tmp_path}/out/train") | contents(f"{tmp_path}/out/validation")
    assert both == {number: number % 2 for number in range(40)}
    index = Index.open(f"{tmp_path}/out/train")
    assert (index.meta.class_names, index.classes, index.height) == (("cat", "dog"), 2, 4)


def test_captions_are_packed(pictures, tmp_path):
    pack(ImageFolder(str(pictures), held_out=0), str(tmp_path / "out"))
    assert any(b"nought" in path.read_bytes() for path in (tmp_path / "out").rglob("*.tar"))
    assert not (tmp_path / "out" / "validation").exists()


def test_folders_named_as_splits_are_the_splits(pictures, tmp_path):
    for name in ("train", "val"):
        (pictures / name / "a").mkdir(parents=True)
        (pictures / name / "a" / "x.png").write_bytes(png(7 if name == "val" else 8))
    source = ImageFolder(str(pictures))
    assert (source.count("train"), source.count("validation"), source.class_names) == (1, 1, ())


def test_images_are_resized_and_re_encoded(pictures, tmp_path):
    options = PackOptions(how=Encoding((2, 2), "webp"))
    pack(ImageFolder(str(pictures), held_out=0), str(tmp_path / "out"), options)
    index = Index.open(f"{tmp_path}/out/train")
    assert (index.height, index.width) == (2, 2)
    assert "webp.offset" in index.members(0).column_names


@pytest.mark.parametrize(("size", "shards"), [(10_000, (6, 12)), (10**9, (1, 1))])
def test_shards_have_about_the_requested_bytes(pictures, tmp_path, size, shards):
    packed = pack(ImageFolder(str(pictures), held_out=0), str(tmp_path / "out"), PackOptions(shard_bytes=size))
    assert shards[0] <= packed[0].shards <= shards[1]


class StopHereError(Exception):
    pass


def test_an_interrupted_packing_keeps_complete_shards_and_ends_with_the_same_bytes(pictures, tmp_path):
    source, options = ImageFolder(str(pictures), held_out=0), PackOptions(shard_images=10)
    written: list[str] = []

    def stop_after_two(call, jobs: list[ShardJob]):
        for job in jobs:
            if len(written) == 2:
                raise StopHereError
            written.append(job.name)
            yield call(job)

    with pytest.raises(StopHereError):
        pack(source, str(tmp_path / "out"), options, each=stop_after_two)
    with pytest.raises(DataError, match="no index"):
        Index.open(f"{tmp_path}/out/train")
    (tmp_path / "out" / "train" / "000001.tar").write_bytes(b"cut short")
    again: list[str] = []

    def note(call, jobs: list[ShardJob]):
        again.extend(job.name for job in jobs)
        return map(call, jobs)

    pack(source, str(tmp_path / "out"), options, each=note)
    assert again == ["000001.tar", "000002.tar", "000003.tar"]
    pack(source, str(tmp_path / "straight"), options)
    one, other = ({p.name: p.read_bytes() for p in (tmp_path / n).rglob("*.tar")} for n in ("out", "straight"))
    assert one == other
    assert not list((tmp_path / "out").rglob("packing/*"))


def test_a_folder_without_images_is_a_one_line_error(tmp_path):
    with pytest.raises(DataError, match="no images"):
        ImageFolder(str(tmp_path))
    with pytest.raises(DataError, match="no such folder"):
        ImageFolder(str(tmp_path / "none"))


def test_all_images_that_cannot_be_packed_are_named_by_their_files(pictures, tmp_path):
    whole = png(4)
    spoil = {"cat/4.png": whole[:50], "dog/7.png": whole[:40], "cat/12.png": whole[:60]}
    for path, data in spoil.items():
        (pictures / path).write_bytes(data)
    with pytest.raises(BadImagesError, match=r"3 of 40 images cannot be packed, first .* does not decode") as error:
        pack(ImageFolder(str(pictures), held_out=0), str(tmp_path / "out"))
    assert sorted(bad.where for bad in error.value.bad) == sorted(str(pictures / path) for path in spoil)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out/train/index/index.json").exists()


def test_bad_images_are_left_out_on_request(pictures, tmp_path):
    (pictures / "cat/4.png").write_bytes(png(4)[:40])
    source, skip = ImageFolder(str(pictures), held_out=0), PackOptions(skip_bad=True)
    for written in (True, False):
        (packed,) = pack(source, str(tmp_path / "out"), skip)
        assert (packed.images, packed.written, [bad.where for bad in packed.bad]) == (
            39,
            written,
            [f"{pictures}/cat/4.png"],
        )
    assert sorted(contents(f"{tmp_path}/out/train")) == [n for n in range(40) if n != 4]
    with pytest.raises(BadImagesError, match="1 of 40"):
        pack(source, str(tmp_path / "out"))


def test_a_mended_image_is_packed_with_the_shards_that_are_complete(pictures, tmp_path):
    (pictures / "cat/4.png").write_bytes(png(4)[:40])
    options = PackOptions(shard_images=5)
    with pytest.raises(BadImagesError):
        pack(ImageFolder(str(pictures), held_out=0), str(tmp_path / "out"), options)
    (pictures / "cat/4.png").write_bytes(png(4))
    again: list[str] = []

    def note(call, jobs: list[ShardJob]):
        again.extend(job.name for job in jobs)
        return map(call, jobs)

    pack(ImageFolder(str(pictures), held_out=0), str(tmp_path / "out"), options, each=note)
    assert len(again) == 1
    assert sorted(contents(f"{tmp_path}/out/train")) == list(range(40))


def test_a_shard_can_be_written_by_another_process(pictures, tmp_path):
    part = ImageFolder(str(pictures), held_out=0).part("train", 5, 8)
    job = ShardJob(part, str(tmp_path / "out"), "000000.tar", 5, Encoding(), 256)
    assert len(pickle.dumps(job)) < 2000  # without the other files
    written = write_shard(pickle.loads(pickle.dumps(job)))
    assert (written.shard.images, written.bad) == (3, ())


def change(path: Path, data: bytes) -> None:
    """Write a file in place, at another time than before."""
    before = path.stat().st_mtime_ns
    path.write_bytes(data)
    os.utime(path, ns=(before + 1, before + 1))


CHANGES: dict[str, Callable[[Path], object]] = {
    "an image edited": lambda root: change(root / "cat/2.png", png(1000)),
    "a caption edited": lambda root: change(root / "cat/0.txt", b"other1"),
    "a caption more": lambda root: (root / "cat/2.txt").write_text("two"),
    "an image more": lambda root: (root / "cat/99.png").write_bytes(png(99)),
    "an image renamed": lambda root: (root / "cat/2.png").rename(root / "cat/2b.png"),
    "an image in another class": lambda root: (root / "cat/2.png").rename(root / "dog/2.png"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_changed_folder_is_not_already_packed(pictures, tmp_path, case):
    out = str(tmp_path / "out")
    pack(ImageFolder(str(pictures), held_out=0), out)
    assert not pack(ImageFolder(str(pictures), held_out=0), out)[0].written
    CHANGES[case](pictures)
    with pytest.raises(DataError, match=r"train: already packed from images of pictures with other images \("):
        pack(ImageFolder(str(pictures), held_out=0), out)


def test_an_interrupted_packing_writes_shards_of_changed_images_again(pictures, tmp_path):
    def stop_after_two(call, jobs: list[ShardJob]):
        yield from map(call, jobs[:2])
        raise StopHereError

    options = PackOptions(shard_images=10)
    with pytest.raises(StopHereError):
        pack(ImageFolder(str(pictures), held_out=0), str(tmp_path / "out"), options, each=stop_after_two)
    for number in range(40):
        change(pictures / ("dog" if number % 2 else "cat") / f"{number}.png", png(number + 500))
    pack(ImageFolder(str(pictures), held_out=0), str(tmp_path / "out"), options)
    assert sorted(contents(f"{tmp_path}/out/train")) == list(range(500, 540))


def test_an_interrupted_packing_with_other_options_leaves_no_shards_behind(pictures, tmp_path):
    def stop_after_all(call, jobs: list[ShardJob]):
        yield from map(call, jobs)
        raise StopHereError

    source = ImageFolder(str(pictures), held_out=0)
    with pytest.raises(StopHereError):
        pack(source, str(tmp_path / "out"), PackOptions(shard_images=4), each=stop_after_all)
    pack(source, str(tmp_path / "out"), PackOptions(shard_images=20))
    assert sorted(path.name for path in (tmp_path / "out").rglob("*.tar")) == ["000000.tar", "000001.tar"]
    assert not list((tmp_path / "out").rglob("packing/*"))


def test_an_image_that_changes_while_it_is_packed_is_not_packed(pictures, tmp_path):
    source = ImageFolder(str(pictures), held_out=0)
    change(pictures / "cat/2.png", png(1000))
    with pytest.raises(BadImagesError, match=r"cat/2\.png: changed while it was packed; pack again"):
        pack(source, str(tmp_path / "out"))


def save(path: Path, image: np.ndarray, kind: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(path, kind)


def test_other_formats_are_packed_without_loss_and_the_bytes_decide(tmp_path):
    root = tmp_path / "photos"
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    for image, (name, kind) in zip(
        images,
        [
            ("a.bmp", "BMP"),
            ("b.tif", "TIFF"),
            ("c.tiff", "TIFF"),
            ("d.JPEG", "PNG"),
            ("e.jpg", "BMP"),
            ("f.png", "PNG"),
        ],
        strict=True,
    ):
        save(root / name, image, kind)
    flat = np.full((8, 8, 3), 77, np.uint8)
    save(root / "g.jfif", flat, "JPEG")
    frames = [Image.fromarray(np.full((8, 8), value, np.uint8)) for value in (30, 200)]
    frames[0].save(root / "h.gif", save_all=True, append_images=frames[1:])
    pack(ImageFolder(str(root), held_out=0), str(tmp_path / "out"))
    found = {image.tobytes() for image in pixels(f"{tmp_path}/out/train")}
    assert found == {image.tobytes() for image in [*images, flat, np.full((8, 8, 3), 30, np.uint8)]}
    extensions = {name.removesuffix(".offset") for name in columns(f"{tmp_path}/out/train") if ".offset" in name}
    assert extensions == {"png", "jpg"}


def pixels(url: str) -> list[np.ndarray]:
    """The images of a set, [H, W, C]."""
    with evaluation_batches(DataConfig(shards=url, workers=0), Index.open(url), batch=50) as batches:
        batch = next(batches)
    return [np.ascontiguousarray(image.permute(1, 2, 0).numpy()) for image in batch.images[batch.weights > 0]]


def columns(url: str) -> set[str]:
    index = Index.open(url)
    return {name for number in range(len(index)) for name in index.members(number).column_names}


def test_transparent_images_are_composited_counted_and_hide_nothing(tmp_path):
    hidden = np.full((8, 8, 4), 200, np.uint8)
    hidden[:, :, 3] = 0
    opaque = np.full((8, 8, 4), 255, np.uint8)
    opaque[:, :, :3] = 90
    for number, image in enumerate([hidden, opaque]):
        save(tmp_path / "photos" / f"{number}.png", image, "PNG")
    (packed,) = pack(ImageFolder(str(tmp_path / "photos"), held_out=0), str(tmp_path / "out"))
    assert packed.transparent == 1
    assert sorted({int(value) for image in pixels(packed.url) for value in np.unique(image)}) == [90, 255]
    assert b"\xc8\xc8\xc8" not in zlib_contents(tmp_path / "out")
    assert pack(ImageFolder(str(tmp_path / "photos"), held_out=0), str(tmp_path / "out"))[0].transparent == 1


def zlib_contents(folder: Path) -> bytes:
    """The decoded bytes, alpha included, of all images in shards of PNGs."""
    found = b""
    for path in folder.rglob("*.tar"):
        with tarfile.open(path) as tar:
            for member in tar:
                data = tar.extractfile(member)
                assert data is not None
                found += Image.open(data).tobytes()
    return found


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_more_than_eight_bits_are_refused_when_packed(tmp_path, kind):
    path = tmp_path / f"photos/deep.{kind.lower()}"
    path.parent.mkdir()
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 900).save(path, kind)
    with pytest.raises(BadImagesError, match=r"deep\.\w+: the image has 16 bits per channel \(65,536 levels\)"):
        pack(ImageFolder(str(tmp_path / "photos"), held_out=0), str(tmp_path / "out"))


def test_what_is_no_image_is_skipped_counted_and_named(pictures):
    for name in (".DS_Store", "cat/._0.png", "cat/.ipynb_checkpoints/0-checkpoint.png", "__MACOSX/cat/1.png"):
        (pictures / name).parent.mkdir(parents=True, exist_ok=True)
        (pictures / name).write_bytes(png(0))
    (pictures / "cat/@eaDir/0.png").mkdir(parents=True)
    (pictures / "cat/@eaDir/0.png/SYNOPHOTO_THUMB_SM.jpg").write_bytes(png(0))
    (pictures / "cat/empty.jpg").touch()
    (pictures / "cat/404.jpg").write_bytes(b"<!DOCTYPE html><p>not found")
    (pictures / "dog/new.heic").write_bytes(b"....ftypheic")
    (pictures / "dog/new2.HEIC").write_bytes(b"....ftypheic")
    (pictures / "labels.csv").touch()
    (pictures / "dog/gone.png").symlink_to("nowhere.png")
    os.mkfifo(pictures / "dog/pipe.png")
    source = ImageFolder(str(pictures), held_out=0)
    assert (source.count("train"), source.class_names) == (40, ("cat", "dog"))
    text = source.found()[-1]
    for reason in (
        "5 hidden or system files (",
        "1 empty (cat/empty.jpg)",
        "1 HTML or XML, not an image (cat/404.jpg)",
        "2 .heic (dog/new.heic, ...)",
        "1 .csv (labels.csv)",
        "1 broken links (dog/gone.png)",
        "1 not a regular file (dog/pipe.png)",
    ):
        assert reason in text


def test_links_to_folders_inside_are_followed_and_others_named(pictures, tmp_path):
    root = tmp_path / "subset"
    (root / "all/cat").mkdir(parents=True)
    (root / "all/dog").mkdir()
    (root / "train").mkdir()
    (root / "val/cat").mkdir(parents=True)
    for number, folder in enumerate(["all/cat", "all/dog", "val/cat"]):
        (root / folder / "x.png").write_bytes(png(number))
    for name in ("cat", "dog"):
        (root / "train" / name).symlink_to(root / "all" / name)
    (root / "train/loop").symlink_to(root)
    (root / "train/owl").symlink_to(pictures / "cat")
    source = ImageFolder(str(root))
    assert (source.count("train"), source.class_names) == (2, ("cat", "dog"))
    skipped = source.found()[-1]
    assert "1 links to folders outside (--follow-links follows them) (train/owl)" in skipped
    assert "1 links to a folder that holds them (train/loop)" in skipped
    assert "2 outside the split folders (all/cat/x.png, ...)" in skipped
    followed = ImageFolder(str(root), follow_links=True)
    assert (followed.count("train"), followed.class_names) == (22, ("cat", "dog", "owl"))


def test_a_folder_of_links_that_lead_outside_says_how_to_follow_them(pictures, tmp_path):
    (tmp_path / "subset").mkdir()
    for name in ("cat", "dog"):
        (tmp_path / "subset" / name).symlink_to(pictures / name)
    with pytest.raises(DataError, match=r"subset: no images .*2 links to folders outside \(--follow-links follows"):
        ImageFolder(str(tmp_path / "subset"))
    assert ImageFolder(str(tmp_path / "subset"), 0, follow_links=True).count("train") == 40
    (tmp_path / "link").symlink_to(pictures)
    assert ImageFolder(str(tmp_path / "link"), 0).count("train") == 40


def test_captions_that_are_links_to_files_outside_are_not_read(pictures, tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    (pictures / "dog/1.txt").symlink_to(tmp_path / "secret.txt")
    (pictures / "dog/3.txt").symlink_to(pictures / "cat/0.txt")
    with pytest.raises(BadImagesError, match=r"1 of 40 .*dog/1\.png: its caption 1\.txt is a link to a file outside"):
        pack(ImageFolder(str(pictures), held_out=0), str(tmp_path / "out"))
    assert not any(b"secret" in path.read_bytes() for path in (tmp_path / "out").rglob("*.tar"))


def test_a_test_split_is_packed_as_one_and_validation_held_out_on_request(tmp_path):
    root = tmp_path / "set"
    for number in range(40):
        path = root / ("Test" if number % 4 == 0 else "Train") / ("a", "b")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number))
    packed = pack(ImageFolder(str(root)), str(tmp_path / "out"))
    assert [(split.split, split.images) for split in packed] == [("train", 30), ("test", 10)]
    packed = pack(ImageFolder(str(root), held_out=0.2), str(tmp_path / "held"))
    assert [(split.split, split.images) for split in packed] == [("train", 24), ("validation", 6), ("test", 10)]
    parts = [set(contents(split.url)) for split in packed]
    assert parts[2] == set(range(0, 40, 4))
    assert sum(map(len, parts)) == len(set.union(*parts)) == 40
    (root / "val").mkdir()
    (root / "val/x.png").write_bytes(png(77))
    with pytest.raises(DataError, match="has a validation folder; --held-out is for folders without one"):
        ImageFolder(str(root), held_out=0.2)


def test_a_split_without_class_folders_has_no_labels(tmp_path):
    for number, folder in enumerate(["train/a", "train/b", "train/a", "val"]):
        (tmp_path / "set" / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / folder / f"{number}.png").write_bytes(png(number))
    source = ImageFolder(str(tmp_path / "set"))
    assert any("note: validation without classes" in line for line in source.found())
    pack(source, str(tmp_path / "out"))
    train, validation = (Index.open(f"{tmp_path}/out/{split}").meta for split in ("train", "validation"))
    assert (train.classes, train.class_names) == (2, ("a", "b"))
    assert (validation.classes, validation.class_names) == (0, ())
    assert contents(f"{tmp_path}/out/train") == {0: 0, 1: 1, 2: 0}
    assert list(contents(f"{tmp_path}/out/validation")) == [3]


def test_classes_can_be_turned_off(pictures):
    source = ImageFolder(str(pictures), classes=False)
    assert source.class_names == ()
    assert source.part("train", 0, 1).example(0).label is None
