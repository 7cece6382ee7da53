"""Indexing finds the samples of a tar, and its defects."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from cluster.storage.storage import Storage
from datasets.errors import DataError
from datasets.order.order import Range
from datasets.reading.shard_reader import ShardReader
from datasets.shards.columns import numbers
from datasets.shards.index import Index
from datasets.shards.index_files import encode_table, read_table
from datasets.shards.indexing import IndexOptions, index_shards
from datasets.shards.scan import ScanOptions, scan_tar
from tests.datasets.small_sets import image_of, png, write_members, write_set
from tests.testbed.processes import REPOSITORY


def bad_of(path: Path, image: str = "") -> list[tuple[str, str]]:
    """The samples of a tar that cannot be used, and why."""
    return list(map(tuple, scan_tar(Storage(str(path.parent)), path.name, ScanOptions(image)).bad))


def pairs(*keys: str) -> list[tuple[str, bytes]]:
    """Complete samples with these keys."""
    return [member for key in keys for member in ((f"{key}.png", png()), (f"{key}.cls", b"1"))]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_reading_by_offset_gives_the_same_samples_as_webdataset(tmp_path, format):
    names = ["b/x", "a" * 110 + "/long", "äöü", "with.dots/in.folder/n"]
    members = []
    for number, name in enumerate(names):
        members += [(f"{name}.PNG", png(number)), (f"{name}.seg.cls", b"7"), (f"{name}.cls", str(number).encode())]
        members += [(f"{name}.txt", f"caption {number}".encode())]
    members += [("__meta__/info.txt", b"not a sample"), ("README", b"no extension")]
    write_members(tmp_path / "s" / "0.tar", members, format)
    index_shards(str(tmp_path / "s"), str(tmp_path / "s" / "index"))
    index = Index.open(str(tmp_path / "s"))
    reader = ShardReader(index, members=["cls"])
    held = reader.read(Range(0, 0, int(index.counts[0])))
    table = index.members(0)
    theirs = list(webdataset.WebDataset(str(tmp_path / "s" / "0.tar"), shardshuffle=False))
    assert len(theirs) == index.images == 4
    for row, sample in enumerate(theirs):
        assert reader.where(held, row) == (str(tmp_path / "s" / "0.tar"), sample["__key__"])
        assert bytes(held.image(row)[0]) == sample[held.extensions[row]]
        assert bytes(held.member(row, "cls")[0]) == sample["cls"]
        assert {name for name in sample if name[0] != "_"} <= {
            name.partition(".offset")[0] for name in table.column_names
        }
        for extension in ("txt", "seg.cls"):
            start, size = (table.column(f"{extension}.{field}")[row].as_py() for field in ("offset", "size"))
            assert (tmp_path / "s" / "0.tar").read_bytes()[start : start + size] == sample[extension]


def test_the_index_has_the_format_of_the_images(tmp_path):
    index = write_set(tmp_path / "set", [3, 4])
    assert (index.channels, index.height, index.width, index.levels, index.classes) == (1, 4, 6, 256, 7)
    assert index.counts.tolist() == [3, 4]
    assert index.counts.dtype == np.int64
    assert (len(index), index.images, index.name(1)) == (2, 7, "0001.tar")
    assert index.shard(1).bytes == (tmp_path / "set" / "0001.tar").stat().st_size


def test_the_fingerprint_depends_on_contents_and_names_but_not_on_the_url(tmp_path):
    one, copy = write_set(tmp_path / "a", [3, 4]), write_set(tmp_path / "b", [3, 4])
    assert one.fingerprint == copy.fingerprint
    others = [write_set(tmp_path / "c", [4, 3]), write_set(tmp_path / "d", [3, 4], labels=False)]
    (tmp_path / "b" / "0001.tar").rename(tmp_path / "b" / "other.tar")
    index_shards(str(tmp_path / "b"), str(tmp_path / "b" / "index"))
    others.append(Index.open(str(tmp_path / "b")))
    assert len({one.fingerprint, *(other.fingerprint for other in others)}) == 4


def test_different_sizes_and_channels_are_indexed(tmp_path):
    write_members(tmp_path / "0.tar", [("a.png", png()), ("b.png", png(1, channels=3))])
    meta = index_shards(str(tmp_path), str(tmp_path / "index")).meta
    assert (meta.channels, meta.height, meta.width, meta.classes) == (3, 4, 6, 0)
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.zeros((9, 9), dtype=np.uint8))
    write_members(tmp_path / "1.tar", [("c.npy", stream.getvalue())])
    meta = index_shards(str(tmp_path), str(tmp_path / "index")).meta
    assert (meta.height, meta.width) == (0, 0)


def test_class_names_are_kept_and_must_cover_all_labels(tmp_path):
    write_members(tmp_path / "0.tar", pairs("a", "b"))
    index_shards(str(tmp_path), str(tmp_path / "index"), IndexOptions(class_names=("cat", "dog", "owl")))
    index = Index.open(str(tmp_path))
    assert (index.classes, index.meta.class_names) == (3, ("cat", "dog", "owl"))
    with pytest.raises(DataError, match="label 1 is outside the 1 class names"):
        index_shards(str(tmp_path), str(tmp_path / "index"), IndexOptions(class_names=("cat",)))


def test_a_tar_cut_anywhere_keeps_the_samples_before_the_cut(tmp_path):
    whole, cut = tmp_path / "whole.tar", tmp_path / "cut.tar"
    write_members(whole, pairs("a", "b"))
    data = whole.read_bytes()
    end = data.rindex(b"1") // 512 * 512 + 512  # the end of the last member's last block
    cut.write_bytes(data[: end + 512])
    assert not bad_of(cut)  # one block of zeros ends an archive
    for size in (*range(1, end, 97), *range(512, end + 1, 512), end + 511):
        cut.write_bytes(data[:size])
        scan = scan_tar(Storage(str(tmp_path)), "cut.tar")
        *samples, shard = scan.bad
        assert shard.key == ""
        assert re.match("(truncated|not a tar|damaged|empty)", shard.reason)
        begun = [key for key, start in (("a", 0), ("b", end // 2)) if size >= start + 512 + len(png())]
        assert [*(sample.key for sample in scan.samples), *(bad.key for bad in samples)] == begun
        assert [bad.reason for bad in samples] in ([], ["may be incomplete: the shard cannot be read any further"])
        if size < end:  # b at least is not whole
            assert not scan.samples or [sample.key for sample in scan.samples] == ["a"]
            assert all(sample.members.keys() == {"png", "cls"} for sample in scan.samples)


def test_a_bit_flipped_anywhere_in_a_header_is_found(tmp_path):
    path = tmp_path / "a.tar"
    write_members(path, pairs("a", "b", "c"))
    data = path.read_bytes()
    header = next(place for place in range(0, len(data), 512) if data[place : place + 5] == b"b.cls")
    for place in range(header, header + 500, 7):  # the checksum covers the whole header
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x15]) + data[place + 1 :])
        assert bad_of(path)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([*pairs("a"), ("b.png", png())], r"b: has no \.cls, but 'a' has one"),
        ([("a.cls", b"1")], r"a: has no image among its members \(\.cls\); images end in \.png"),
        (
            [("photo.v1.png", png())],
            r"photo: has no image .*: a key ends at the first dot .*; rename such as photo\.v1\.png to photo_v1\.png, "
            r"or choose one by --image v1\.png",
        ),
        ([("000.resized.jpg", png())], r"000: .* rename such as 000\.resized\.jpg to 000_resized\.jpg"),
        (
            [("a.png", png()), ("a.jpg", png())],
            r"a: has 2 images among its members \(\.png, \.jpg\): --image png chooses",
        ),
        ([("a.gif", b"GIF89a")], r"a: has no image among its members \(\.gif\); images end in \.png, \.jpg"),
        ([*pairs("a", "b", "a")], r"a: 'a\.png' is repeated"),
        ([("a.png", png()), ("a.png", png())], r"a: 'a\.png' is repeated"),
        ([("a.png", b"no png at all")], r"a: 'a\.png': the image does not decode \(not an image format that is read\)"),
        ([("a.png", b"")], r"a: 'a\.png': the image does not decode \(empty\)"),
        ([("a.png", b"<html>404</html>")], r"a: 'a\.png': the image does not decode \(HTML or XML, not an image\)"),
        ([("a.png", png()), ("a.cls", b"cat")], r"a: 'a\.cls': label 'cat' is not a non-negative integer"),
        ([("a.png", png()), ("a.cls", b"-1")], "a: .*'-1' is not a non-negative integer"),
        ([("a.png", png()), ("a.cls", b"9" * 18)], r"a: 'a\.cls': label 9{18}; the limit is 1048575"),
    ],
)
def test_a_sample_that_cannot_be_used_is_left_out_with_its_reason(tmp_path, members, message):
    write_members(tmp_path / "s.tar", members)
    scan = scan_tar(Storage(str(tmp_path)), "s.tar")
    ((key, reason),) = scan.bad
    assert re.match(message, f"{key}: {reason}")
    assert "\n" not in reason
    assert {sample.key for sample in scan.samples} | {key} == {name.partition(".")[0] for name, _ in members}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"hello " * 500, "not a tar"),
        (bytes(10240), "hold no images"),
        (b"\x1f\x8b" + bytes(600), "compressed with gzip"),
        (b"\x28\xb5\x2f\xfd" + bytes(600), "compressed with zstd"),
    ],
)
def test_a_file_that_is_not_a_tar_is_a_one_line_error(tmp_path, data, message):
    (tmp_path / "s.tar").write_bytes(data)
    with pytest.raises(DataError, match=message):
        index_shards(str(tmp_path), str(tmp_path / "index"))
    assert not (tmp_path / "index" / "index.json").exists()


def test_of_concatenated_archives_the_first_is_read(tmp_path):
    write_members(tmp_path / "s.tar", pairs("a"))
    (tmp_path / "s.tar").write_bytes((tmp_path / "s.tar").read_bytes() * 2)
    ((key, reason),) = bad_of(tmp_path / "s.tar")
    assert key == ""
    assert re.match("damaged: the bytes after 2048 are not a member", reason)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_never_followed(tmp_path, kind):
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        info = tarfile.TarInfo("a.png")
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)
    assert bad_of(tmp_path / "s.tar") == [("a", "'a.png' is not a regular file (a link, a device or sparse)")]


def test_folders_in_a_tar_are_skipped(tmp_path):
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        folder = tarfile.TarInfo("x")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        info = tarfile.TarInfo("x/a.png")
        info.size = len(png())
        tar.addfile(info, io.BytesIO(png()))
    assert [sample.key for sample in scan_tar(Storage(str(tmp_path)), "s.tar").samples] == ["x/a"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "no such folder, or it is empty"),
        (lambda folder: folder.mkdir(), "no such folder, or it is empty"),
        (lambda folder: write_members(folder / "0.tar", pairs("a")), r"make it with: python -m jobs\.index /"),
    ],
)
def test_the_error_of_a_missing_index_says_how_to_make_one(tmp_path, make, message):
    make(tmp_path / "set")
    with pytest.raises(DataError, match=message):
        Index.open(str(tmp_path / "set"))


@pytest.mark.parametrize("name", ["index.json", "shards.arrow"])
def test_a_damaged_index_is_a_one_line_error(tmp_path, name):
    write_set(tmp_path / "set", [3])
    (tmp_path / "set" / "index" / name).write_bytes(b'{"version": 1}')
    with pytest.raises(DataError, match=rf"{name}: (damaged|not the index)"):
        Index.open(str(tmp_path / "set"))


def test_an_index_of_another_version_is_refused(tmp_path):
    write_set(tmp_path / "set", [3])
    path = tmp_path / "set" / "index" / "index.json"
    path.write_text(path.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(DataError, match="has version 2; this program reads version 1"):
        Index.open(str(tmp_path / "set"))


def test_an_index_may_be_in_another_folder(tmp_path):
    write_members(tmp_path / "set" / "0.tar", pairs("a"))
    index_shards(str(tmp_path / "set"), str(tmp_path / "elsewhere"))
    assert not (tmp_path / "set" / "index").exists()
    index = Index.open(str(tmp_path / "set"), str(tmp_path / "elsewhere"))
    held = ShardReader(index).read(Range(0, 0, 1))
    assert held.image(0)[0] == png()


def test_a_shard_that_shrank_is_reported_for_the_samples_it_lost(tmp_path):
    index = write_set(tmp_path / "set", [9])
    shard = tmp_path / "set" / "0000.tar"
    shard.write_bytes(shard.read_bytes()[:3000])
    reader = ShardReader(index)
    held = reader.read(Range(0, 0, 9))
    assert held.image(0)[0] == png(0)
    with pytest.raises(DataError, match="png does not match its checksum: the shard has 3000 bytes, 20480 when"):
        reader.decode(held, 3, index.format)
    shard.unlink()
    held = reader.read(Range(0, 0, 9))
    with pytest.raises(DataError, match="the shard no longer exists"):
        reader.decode(held, 0, index.format)


def test_indexed_images_equal_the_packed_ones(tmp_path):
    index = write_set(tmp_path / "set", [5])
    reader = ShardReader(index)
    held = reader.read(Range(0, 2, 5))
    assert [bytes(held.image(row)[0]) for row in range(3)] == [png(number) for number in (2, 3, 4)]
    assert image_of(2).shape == (4, 6, 1)


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        ([1, 1, 1, 1], ""),
        ([3, 3, 3, 3], ""),
        ([1, 1, 3, 1], "0001.tar: sample '000002' is in colour, as are 1 of all 4 images; every image is read with 3"),
        (
            [3, 1, 3, 3],
            "0000.tar: sample '000001' is grey, as are 1 of all 4 images; every image is read with 3 channels",
        ),
        ([1, 1, 3, 3], "0000.tar: sample '000000' is grey, as are 2 of all 4 images"),
    ],
)
def test_a_set_of_grey_and_colour_images_has_a_warning(tmp_path, kinds, message):
    members = [(f"{number:06d}.png", png(number, channels)) for number, channels in enumerate(kinds)]
    for shard in range(2):
        write_members(tmp_path / f"000{shard}.tar", members[2 * shard : 2 * shard + 2])
    index_shards(str(tmp_path), str(tmp_path / "index"))
    line = Index.open(str(tmp_path)).mixed_colours
    assert line.startswith(f"{tmp_path}/{message}") if message else not line
    assert "\n" not in line


@pytest.mark.parametrize("newest", [9, 12, 14])
def test_an_older_index_is_read(tmp_path, newest):
    index = write_set(tmp_path, [3, 4])
    table = read_table(Storage(str(tmp_path / "index")), "shards.arrow")
    Storage(str(tmp_path / "index")).write("shards.arrow", encode_table(table.select(table.column_names[:newest])))
    before = Index.open(str(tmp_path))
    unknown = {"grey_key": "", "colour_key": ""} if newest == 9 else {}
    assert [before.shard(number) for number in range(2)] == [index.shard(i)._replace(**unknown) for i in range(2)]
    assert not before.mixed_colours


@given(st.lists(st.lists(st.one_of(st.none(), st.integers(0, 2**32 - 1)))), st.integers(0, 9))
def test_a_column_of_integers_becomes_an_array(chunks, skipped):
    column = pa.chunked_array([pa.array(chunk, pa.uint32()) for chunk in chunks], pa.uint32())[skipped:]
    values = numbers(column, missing=7)
    assert values.dtype == np.uint32
    assert values.tolist() == [7 if value is None else value for value in column.to_pylist()]


def test_a_loader_process_imports_neither_torch_nor_pydantic_nor_pandas(tmp_path):
    """They would cost it seconds; Arrow imports pandas if it can."""
    write_set(tmp_path, [3])
    script = """if True:
        import sys, datasets.loading.loader_process
        from datasets.shards.index import Index
        from datasets.reading.shard_reader import ShardReader
        from datasets.order.order import Range
        ShardReader(Index.open(sys.argv[1])).read(Range(0, 0, 3))
        print(*{"torch", "pydantic", "pandas"} & sys.modules.keys())
    """
    ran = subprocess.run([sys.executable, "-c", script, tmp_path], cwd=REPOSITORY, capture_output=True, text=True)
    assert (ran.stdout, ran.stderr) == ("\n", "")
