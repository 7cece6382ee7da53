"""Sources are packed into the same bytes every time, with a correct index."""

from __future__ import annotations

import gzip
import io
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from sklearn.datasets import load_digits

from datasets.config import DataConfig
from datasets.errors import DataError
from datasets.loading.build import evaluation_batches
from datasets.packing.encoding import Encoding
from datasets.packing.pack import PackOptions, pack
from datasets.packing.sources.binarized_mnist import BinarizedMnist
from datasets.packing.sources.cifar10 import Cifar10
from datasets.packing.sources.digits import Digits
from datasets.packing.sources.held_out import HeldOut
from datasets.packing.sources.idx import Idx
from datasets.packing.sources.source import SPLITS, Example, InMemory, Source
from datasets.reading.verify import verify_shard
from datasets.shards.index import Index
from datasets.shards.index_files import Meta


def unpacked(url: str) -> tuple[np.ndarray, np.ndarray]:
    """All images [M, C, H, W] and labels (0 without classes) of a packed split, read by the loader."""
    images, labels = [], []
    with evaluation_batches(DataConfig(shards=url, workers=0), Index.open(url), batch=500) as batches:
        for batch in batches:
            kept = batch.weights > 0
            images.append(batch.images[kept].numpy())
            labels.append(batch.conditions.get("label", torch.zeros(len(kept), dtype=torch.int64))[kept].numpy())
    return np.concatenate(images), np.concatenate(labels)


def rows(images: np.ndarray, labels: np.ndarray) -> list[tuple[bytes, int]]:
    return sorted((image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True))


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    pack(Digits(), str(folder))
    return folder


def test_the_packed_digits_are_scikit_learns_each_in_one_split(digits):
    scans = load_digits()
    train, validation = unpacked(str(digits / "train")), unpacked(str(digits / "validation"))
    assert (len(train[0]), len(validation[0])) == (1527, 270)
    both = rows(*(np.concatenate(parts) for parts in zip(train, validation, strict=True)))
    assert both == rows(scans.images.astype(np.uint8), scans.target)
    assert np.bincount(validation[1], minlength=10).min() >= 15  # drawn, not cut off at the end
    meta = Index.open(str(digits / "train")).meta
    assert (meta.channels, meta.height, meta.width, meta.levels, meta.classes) == (1, 8, 8, 17, 10)


def test_packing_again_writes_the_same_bytes(digits, tmp_path):
    pack(Digits(), str(tmp_path))
    ours = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*.tar")}
    assert ours == {path.relative_to(digits): path.read_bytes() for path in digits.rglob("*.tar")}
    assert Index.open(str(tmp_path / "train")).fingerprint == Index.open(str(digits / "train")).fingerprint
    assert not list(tmp_path.rglob(".*"))  # nothing unfinished is left


def test_a_complete_set_is_kept_and_another_set_is_refused(digits, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in digits.rglob("*")}
    assert [split.written for split in pack(Digits(), str(digits))] == [False, False]
    assert before == {path: path.stat().st_mtime_ns for path in digits.rglob("*")}
    with pytest.raises(DataError, match=r"train: already packed from handwritten digits .* with other images"):
        pack(Idx(str(idx_files(tmp_path / "idx"))), str(digits))


def test_webdataset_reads_packed_shards(digits):
    shards = sorted(str(path) for path in (digits / "train").glob("*.tar"))
    samples = list(webdataset.WebDataset(shards, shardshuffle=False).decode("l8").to_tuple("png", "cls"))
    images, labels = unpacked(str(digits / "train"))
    assert len(samples) == 1527
    for (picture, label), image, ours in zip(samples, images, labels, strict=True):
        assert np.array_equal(picture, image[0])
        assert label == ours


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def idx_files(folder: Path, images: int = 20) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(0)
    for split, zipped in (("train", gzip.compress), ("t10k", bytes)):
        suffix = ".gz" if zipped is gzip.compress else ""
        pixels = draw.integers(0, 256, (images, 5, 4), dtype=np.uint8)
        (folder / f"{split}-images-idx3-ubyte{suffix}").write_bytes(zipped(idx(pixels)))
        labels = np.arange(images, dtype=np.uint8) % 3
        (folder / f"{split}-labels-idx1-ubyte{suffix}").write_bytes(zipped(idx(labels)))
    return folder


@pytest.mark.parametrize("binarise", ["", "static"])
def test_idx_files_are_packed_plain_or_gzipped_and_binarised_on_request(tmp_path, binarise):
    source = Idx(str(idx_files(tmp_path / "idx")), binarise)
    pack(source, str(tmp_path / "out"))
    draw = np.random.default_rng(0)
    for split in ("train", "test"):
        pixels = draw.integers(0, 256, (20, 5, 4), dtype=np.uint8)
        wanted = (pixels >= 128).astype(np.uint8) if binarise else pixels
        assert rows(*unpacked(str(tmp_path / "out" / split))) == rows(wanted, np.arange(20) % 3)
    meta = Index.open(str(tmp_path / "out" / "train")).meta
    assert (meta.height, meta.width, meta.classes, meta.binarised) == (5, 4, 3, binarise)
    assert meta.levels == (2 if binarise else 256)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x1f\x8b", "gz: damaged"),
        (gzip.compress(b"nonsense"), "not an idx file"),
        (gzip.compress(idx(np.zeros((3, 5, 4), np.uint8))[:-1]), "59 values, but its header has 3 x 5 x 4"),
        (gzip.compress(idx(np.zeros((3, 5, 4), np.uint8))), r"\(3, 5, 4\) and train-labels-idx1-ubyte \(20,\)"),
    ],
    ids=["no gzip", "no idx", "too short", "other labels"],
)
def test_damaged_idx_files_are_one_line_errors(tmp_path, data, message):
    folder = idx_files(tmp_path)
    (folder / "train-images-idx3-ubyte.gz").write_bytes(data)
    with pytest.raises(DataError, match=message):
        Idx(str(folder))


def test_a_file_with_a_wrong_checksum_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"the MD5 of the decompressed bytes is .*, expected 6bbc9ace"):
        Idx(str(idx_files(tmp_path)), expect="mnist")


def test_missing_source_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"neither train-images-idx3-ubyte nor train-images-idx3-ubyte\.gz"):
        Idx(str(tmp_path))
    with pytest.raises(DataError, match=r"none of data_batch_1\.bin.*pickled Python version is not supported"):
        Cifar10(str(tmp_path))


def test_cifar10_records_are_packed_and_damaged_ones_refused(tmp_path):
    records = np.random.default_rng(0).integers(0, 10, (12, 3073), dtype=np.uint8)
    (tmp_path / "data_batch_2.bin").write_bytes(records[:8].tobytes())
    (tmp_path / "test_batch.bin.gz").write_bytes(gzip.compress(records[8:].tobytes()))
    pack(Cifar10(str(tmp_path)), str(tmp_path / "out"))
    images, labels = unpacked(str(tmp_path / "out" / "train"))
    assert rows(images, labels) == rows(records[:8, 1:].reshape(8, 3, 32, 32), records[:8, 0])
    (tmp_path / "data_batch_2.bin").write_bytes(records.tobytes()[:-1])
    with pytest.raises(DataError, match="36875 bytes are not records of 3073"):
        Cifar10(str(tmp_path))
    (tmp_path / "data_batch_2.bin").write_bytes(bytes([11]) + bytes(3072))
    with pytest.raises(DataError, match="label 11 is outside"):
        Cifar10(str(tmp_path))


def test_binarized_mnist_is_unpacked_bit_by_bit(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 2, (6, 784), dtype=np.uint8)
    for name, part in (("train", pixels[:4]), ("test", pixels[4:]), ("valid", pixels[2:5])):
        stream = io.BytesIO()
        np.save(stream, np.packbits(part, axis=1))
        (tmp_path / f"{name}_packed.npy.gz").write_bytes(gzip.compress(stream.getvalue()))
    pack(BinarizedMnist(str(tmp_path)), str(tmp_path / "out"))
    images, _ = unpacked(str(tmp_path / "out" / "train"))
    assert sorted(image.tobytes() for image in images) == sorted(image.tobytes() for image in pixels[:4])
    meta = Index.open(str(tmp_path / "out" / "train")).meta
    assert (meta.levels, meta.classes, meta.binarised) == (2, 0, "stochastic")
    counts = {split: len(unpacked(str(tmp_path / "out" / split))[0]) for split in SPLITS}
    assert counts == {"train": 4, "validation": 3, "test": 2}
    (tmp_path / "valid_packed.npy.gz").unlink()
    assert [BinarizedMnist(str(tmp_path)).count(split) for split in SPLITS] == [4, 0, 2]


class Squares(InMemory):
    """A custom source: uniform squares without labels."""

    meta = Meta(1, 2, 2, source="squares")

    def __init__(self, images: int):
        self._images = images

    def count(self, split: str) -> int:
        return self._images if split != "test" else 0

    def example(self, split: str, i: int) -> Example:
        return Example(np.full((2, 2, 1), i % 256, dtype=np.uint8), None)


@pytest.mark.parametrize(("images", "size", "shards"), [(20, 7, 3), (3, None, 3), (100, None, 8), (20, 20, 1)])
def test_shards_have_the_requested_images_and_small_sets_have_several(tmp_path, images, size, shards):
    source: Source = Squares(images)
    progress: list[int] = []
    packed = pack(source, str(tmp_path), PackOptions(size), progress.append)
    assert [(split.shards, split.images) for split in packed] == [(shards, images)] * 2
    assert sum(progress) == 2 * images
    found, _ = unpacked(str(tmp_path / "train"))
    assert found[:, 0, 0, 0].tolist() == list(range(images))


def test_the_published_sets_are_packed_as_published(shared_data, tmp_path):
    mnist = Idx(str(shared_data / "mnist"), expect="mnist")
    fashion = Idx(str(shared_data / "fashion_mnist"), expect="fashion-mnist")
    binarized, cifar = BinarizedMnist(str(shared_data / "mnist_binarized")), Cifar10(str(shared_data / "cifar10"))
    counts = [tuple(source.count(split) for split in SPLITS) for source in (mnist, fashion, binarized, cifar)]
    assert counts == [(60_000, 0, 10_000), (60_000, 0, 10_000), (50_000, 10_000, 10_000), (10_000, 0, 1_000)]
    first = mnist.example("train", 0)
    assert first.image.shape == (28, 28, 1)
    assert 0 <= first.label < 10


def test_resized_digits_keep_their_levels_and_the_index_has_the_new_size(tmp_path):
    pack(Digits(), str(tmp_path), PackOptions(how=Encoding(size=(12, 16))))
    images, _ = unpacked(str(tmp_path / "validation"))
    meta = Index.open(str(tmp_path / "validation")).meta
    assert (meta.height, meta.width, meta.levels, meta.classes, images.shape[1:]) == (12, 16, 17, 10, (1, 12, 16))
    assert images.max() == 16
    assert verified(tmp_path / "train") == (1527, [])


def test_colour_images_of_a_fixed_source_are_described_as_written(tmp_path):
    (tmp_path / "data_batch_1.bin").write_bytes(bytes(3073) * 4)
    (tmp_path / "test_batch.bin").write_bytes(bytes(3073))
    pack(Cifar10(str(tmp_path)), str(tmp_path / "out"), PackOptions(how=Encoding((8, 8), "jpg")))
    meta = Index.open(str(tmp_path / "out" / "test")).meta
    assert (meta.height, meta.width, meta.levels, meta.classes) == (8, 8, 256, 10)
    assert verified(tmp_path / "out" / "train") == (4, [])


def verified(folder: Path) -> tuple[int, list[tuple[str, str]]]:
    """The number of images of a set, and the bad ones with reasons."""
    index = Index.open(str(folder))
    found = [verify_shard(index, number) for number in range(len(index))]
    return index.images, [bad for shard in found for bad in shard.bad]


@pytest.mark.parametrize("extension", ["jpg", "webp"])
def test_lossy_encodings_of_few_levels_are_refused(tmp_path, extension):
    with pytest.raises(DataError, match=f"--encoding {extension} does not keep 17 levels"):
        pack(Digits(), str(tmp_path / "out"), PackOptions(how=Encoding(None, extension)))
    assert not (tmp_path / "out").exists()


def test_binary_images_are_not_resized(tmp_path):
    source = Idx(str(idx_files(tmp_path / "idx")), "static")
    with pytest.raises(DataError, match="--size: binary images cannot be resized"):
        pack(source, str(tmp_path / "out"), PackOptions(how=Encoding((8, 8))))
    pack(source, str(tmp_path / "out"), PackOptions(how=Encoding((5, 4))))


def test_other_options_are_not_already_packed(digits):
    for options, names in (
        (PackOptions(how=Encoding((9, 9))), "size"),
        (PackOptions(how=Encoding(None, "png", 50)), "extension, quality"),
        (PackOptions(shard_images=100), "shard_images"),
    ):
        with pytest.raises(DataError, match=f"train: already packed from handwritten .* with other {names}; give"):
            pack(Digits(), str(digits), options)


def test_a_set_of_an_earlier_version_is_kept_and_said_not_to_be_compared(digits, tmp_path):
    shutil.copytree(digits, tmp_path / "old")
    for split in ("train", "validation"):
        (tmp_path / "old" / split / "index" / "packed.json").unlink()
    assert {(split.written, split.compared) for split in pack(Digits(), str(tmp_path / "old"))} == {(False, False)}
    with pytest.raises(DataError, match=r"train: contains another set \(handwritten digits"):
        pack(Squares(1527), str(tmp_path / "old"))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 2}', '{"version": 1, "bad": 3}'])
def test_a_damaged_record_is_a_one_line_error(digits, tmp_path, text):
    shutil.copytree(digits, tmp_path / "old")
    (tmp_path / "old/train/index/packed.json").write_text(text)
    with pytest.raises(DataError, match=r"packed\.json: damaged \(.*\); delete the folder and pack again"):
        pack(Digits(), str(tmp_path / "old"))


def test_tars_of_somebody_else_are_not_overwritten(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "000000.tar").write_bytes(b"theirs")
    with pytest.raises(DataError, match=r"train: holds tars that were not packed here \(000000\.tar\)"):
        pack(Digits(), str(tmp_path))
    assert (tmp_path / "train" / "000000.tar").read_bytes() == b"theirs"


def test_files_that_decompress_to_gigabytes_are_refused(tmp_path):
    idx_files(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").unlink(missing_ok=True)
    once = gzip.compress(bytes(1 << 24))
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(once * 80)  # 1.3 GB in 1.3 MB
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz: more than 1,073,741,824 bytes"):
        Idx(str(tmp_path))


def test_training_images_of_a_set_without_validation_are_held_out(tmp_path):
    source = Idx(str(idx_files(tmp_path / "idx")))
    train, test = source.count("train"), source.count("test")
    packed = pack(HeldOut(source, 0.25), str(tmp_path / "out"))
    held = round(0.25 * train)
    assert [(split.split, split.images) for split in packed] == [
        ("train", train - held),
        ("validation", held),
        ("test", test),
    ]
    pack(source, str(tmp_path / "whole"))
    images = [unpacked(str(tmp_path / name))[0] for name in ("out/train", "out/validation", "whole/train")]
    parts = sorted(image.tobytes() for part in images[:2] for image in part)
    assert parts == sorted(image.tobytes() for image in images[2])
    with pytest.raises(DataError, match="has a validation split; --held-out is for sets without one"):
        HeldOut(Digits(), 0.1)
