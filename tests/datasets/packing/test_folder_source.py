"""Pack a folder of image files: classes, captions, sizes, and an interrupted run that is continued."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from datasets.config import DataConfig
from datasets.errors import DataError
from datasets.loading.build import evaluation_batches
from datasets.packing.pack import PackOptions, ShardJob, pack, write_shard
from datasets.packing.sources.folder import ImageFolder
from datasets.shards.index import Index
from tests.datasets.small_sets import image_of, number_of, png


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
    """The number in each image, and its label."""
    with evaluation_batches(DataConfig(shards=url, workers=0), Index.open(url), batch=50) as batches:
        batch = next(batches)
    kept = zip(batch.images[batch.weights > 0], batch.labels[batch.weights > 0], strict=True)
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
    options = PackOptions(size=(2, 2), encoding="webp")
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


def test_an_image_that_cannot_be_read_is_named(pictures, tmp_path):
    (pictures / "cat" / "4.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"\.png': the image does not decode"):
        pack(ImageFolder(str(pictures), held_out=0), str(tmp_path / "out"))


def test_a_shard_can_be_written_by_another_process(pictures, tmp_path):
    import pickle

    source = ImageFolder(str(pictures), held_out=0)
    job = ShardJob(source, "train", str(tmp_path / "out"), "000000.tar", 5, 8, PackOptions())
    shard = write_shard(pickle.loads(pickle.dumps(job)))
    assert shard.images == 3
    assert np.array_equal(image_of(0).shape, (4, 6, 1))
