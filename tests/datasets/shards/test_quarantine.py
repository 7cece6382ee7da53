"""Indexing shards made by others: every sample is indexed or quarantined with a reason, in bounded memory and time."""

from __future__ import annotations

import io
import os
import re
import resource
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cluster.storage.storage import Storage
from datasets.config import DataConfig
from datasets.errors import DataError
from datasets.loading.build import evaluation_batches
from datasets.order.order import Range
from datasets.reading import shard_reader
from datasets.reading.verify import verify_shard
from datasets.shards import unfinished
from datasets.shards.bad_samples import BadSamplesError
from datasets.shards.index import Index
from datasets.shards.index_files import read_quarantine
from datasets.shards.indexing import IndexOptions, index_shards, scan_one_by_one
from datasets.shards.scan import ScanOptions, scan_tar
from tests.datasets.small_sets import number_of, png, write_members


def sample(number: int, **changes: bytes | None) -> list[tuple[str, bytes]]:
    """A sample with an image, a label and a caption; a change of None leaves a member out."""
    members = {"png": png(number), "cls": b"1", "txt": b"caption"} | changes
    return [(f"{number:04d}.{name}", data) for name, data in members.items() if data is not None]


def numbers_of(url: str) -> list[int]:
    """The numbers in the images of a set, in order."""
    with evaluation_batches(DataConfig(shards=url, workers=0), Index.open(url), batch=100) as batches:
        return [number_of(image.numpy()) for batch in batches for image in batch.images[batch.weights > 0]]


SPOILT = {
    1: {"png": None},
    2: {"png": b""},
    3: {"png": png(3)[:20]},
    4: {"png": b"<html>404</html>"},
    5: {"cls": None},
    6: {"cls": b"10000000000000000"},
    7: {"jpg": png(7)},
}


JUNK = [("._0001.png", b""), ("README", b""), ("__meta__/a.txt", b"")]


@pytest.fixture
def wild(tmp_path) -> Path:
    """40 samples in two shards, seven of them bad, with files that belong to no sample; a third shard is cut."""
    for shard in range(2):
        members = [member for n in range(20 * shard, 20 * shard + 20) for member in sample(n, **SPOILT.get(n, {}))]
        write_members(
            tmp_path / f"{shard}.tar", [*members, ("._0001.png", b""), ("README", b""), ("__meta__/a.txt", b"")]
        )
    write_members(tmp_path / "2.tar", [member for number in range(40, 44) for member in sample(number)])
    data = (tmp_path / "2.tar").read_bytes()
    (tmp_path / "2.tar").write_bytes(data[: data.index(b"0042.cls") + 100])
    return tmp_path


def test_every_sample_is_indexed_or_quarantined_with_a_reason(wild):
    done = index_shards(str(wild), f"{wild}/index")
    index = Index.open(str(wild))
    kept = [n for n in range(42) if n not in SPOILT]
    assert numbers_of(str(wild)) == kept
    assert (index.images, index.quarantined, sum(shard.skipped for shard in done.shards)) == (len(kept), 8, 6)
    assert [verify_shard(index, number).bad for number in range(3)] == [[], [], []]
    rows = read_quarantine(f"{wild}/index").to_pylist()
    assert {(row["shard"], row["key"]) for row in rows} == {
        *(("0.tar", f"{number:04d}") for number in SPOILT),
        ("2.tar", "0042"),
        ("2.tar", ""),
    }
    assert all(row["reason"] and "\n" not in row["reason"] for row in rows)


def test_what_was_quarantined_is_kept_with_unchanged_shards_and_goes_with_a_replaced_one(wild):
    first = index_shards(str(wild), f"{wild}/index")
    again = index_shards(str(wild), f"{wild}/index")
    assert (again.scanned, again.quarantine.to_pylist()) == (0, first.quarantine.to_pylist())
    write_members(wild / "0.tar", [member for number in range(20) for member in sample(number)])
    reindexed = index_shards(str(wild), f"{wild}/index")
    assert (reindexed.scanned, set(reindexed.quarantine["shard"].to_pylist())) == (1, {"2.tar"})
    (wild / "2.tar").unlink()
    assert not index_shards(str(wild), f"{wild}/index").quarantine.num_rows
    assert numbers_of(str(wild)) == list(range(40))


def test_the_index_of_some_shards_keeps_the_rows_of_the_others(wild):
    first = index_shards(str(wild), f"{wild}/index")
    again = index_shards(f"{wild}/2.tar", f"{wild}/index")
    assert (again.shards, again.quarantine.to_pylist()) == (first.shards, first.quarantine.to_pylist())


def test_stop_names_all_bad_samples_and_writes_no_index(wild):
    with pytest.raises(
        BadSamplesError, match=r"8 of 43 samples .* 1 of 3 shards .*--on-bad quarantine leaves"
    ) as error:
        index_shards(str(wild), f"{wild}/index", IndexOptions(on_bad="stop"))
    assert error.value.quarantine.num_rows == 9
    assert not (wild / "index/index.json").exists()
    assert index_shards(str(wild), f"{wild}/index").scanned == 0  # they were read already


def test_too_many_bad_samples_are_refused(wild):
    with pytest.raises(BadSamplesError, match=r"8 of 43 samples .*; more than --max-bad 0\.1 allows"):
        index_shards(str(wild), f"{wild}/index", IndexOptions(max_bad=0.1))
    assert not (wild / "index/index.json").exists()


def test_interrupted_indexing_keeps_what_it_has_read(wild):
    def stop_after_two(*arguments):
        scan = scan_one_by_one(*arguments)
        yield next(scan)
        yield next(scan)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        index_shards(str(wild), f"{wild}/index", scan_all=stop_after_two)
    write_members(wild / "1.tar", [member for number in range(20, 30) for member in sample(number)])
    done = index_shards(str(wild), f"{wild}/index")
    assert done.scanned == 2
    assert (len(done.shards), done.quarantine.num_rows) == (3, 9)
    assert not list((wild / "index").rglob("unfinished/*"))


def test_killed_indexing_loses_a_minute_at_most(wild, monkeypatch):
    monkeypatch.setattr(unfinished, "_INTERVAL", 0)
    kept = []

    def look(*arguments):
        for scanned in scan_one_by_one(*arguments):
            yield scanned
            kept.append(unfinished.Unfinished(Storage(f"{wild}/index"), ScanOptions()).read()[0].keys())

    index_shards(str(wild), f"{wild}/index", scan_all=look)
    assert [len(names) for names in kept] == [1, 2, 3]


def test_the_image_of_samples_with_several_can_be_chosen(tmp_path):
    for number in range(3):
        images = {"input.png": png(number), "edited.png": png(100 + number)}
        write_members(tmp_path / f"{number}.tar", [(f"{number}.{name}", data) for name, data in images.items()])
    with pytest.raises(BadSamplesError, match=r"0\.input\.png to 0_input\.png, or choose one by --image input\.png"):
        index_shards(str(tmp_path), f"{tmp_path}/index")
    fingerprints = set()
    for image, first in (("input.png", 0), ("edited.png", 100)):
        index_shards(str(tmp_path), f"{tmp_path}/index", IndexOptions(image=image))
        assert numbers_of(str(tmp_path)) == [first, first + 1, first + 2]
        fingerprints.add(Index.open(str(tmp_path)).fingerprint)
    assert len(fingerprints) == 2
    assert index_shards(str(tmp_path), f"{tmp_path}/index").scanned == 0  # the choice is kept
    with pytest.raises(BadSamplesError, match=r"3 of 3 samples .* has no \.other\.jpg among its members"):
        index_shards(str(tmp_path), f"{tmp_path}/index", IndexOptions(image="other.jpg"))
    with pytest.raises(DataError, match="'txt' is no extension of an image"):
        index_shards(str(tmp_path), f"{tmp_path}/index", IndexOptions(image="txt"))


@pytest.mark.parametrize("levels", [-2, 0, 1, 257, 100_000])
def test_impossible_numbers_of_levels_are_refused(tmp_path, levels):
    write_members(tmp_path / "0.tar", sample(0))
    with pytest.raises(DataError, match=f"{levels} levels: .* so L is 2 to 256"):
        index_shards(str(tmp_path), f"{tmp_path}/index", IndexOptions(levels=levels))


def test_class_names_can_be_removed(tmp_path):
    write_members(tmp_path / "0.tar", sample(0))
    for names, expected in ((("a", "b", "c"), 3), (None, 3), ((), 2)):
        assert (
            index_shards(str(tmp_path), f"{tmp_path}/index", IndexOptions(class_names=names)).meta.classes == expected
        )


def test_names_are_split_as_webdataset_splits_them(tmp_path):
    long = "folder/" * 40 + "x"
    for number, format in enumerate((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)):
        write_members(
            tmp_path / f"{number}.tar",
            [
                ("./a.PNG", png()),
                ("./A.png", png()),
                ("dots.in/v.1/b.png", png()),
                (f"{long}.png", png()),
                ("d/.b.png", b""),
            ],
            format,
        )
        scan = scan_tar(Storage(str(tmp_path)), f"{number}.tar")
        assert ([s.key for s in scan.samples], scan.skipped) == (["./a", "./A", "dots.in/v.1/b", long], 1)


def test_a_tar_in_any_order_is_read_by_its_offsets(tmp_path, monkeypatch):
    members = [member for number in range(60) for member in sample(number, cls=str(number % 7).encode())]
    np.random.default_rng(0).shuffle(members)
    write_members(tmp_path / "0.tar", members)
    done = index_shards(str(tmp_path), f"{tmp_path}/index")
    assert (done.shards[0].images, done.quarantine.num_rows) == (60, 0)
    assert done.scattered > 40
    for close in (1 << 16, 0):  # one request, and one for each member
        monkeypatch.setattr(shard_reader, "_CLOSE", close)
        held = shard_reader.ShardReader(Index.open(str(tmp_path)), members=["cls"]).read(Range(0, 0, 7))
        assert isinstance(held.data, shard_reader.Pieces) == (close == 0)
        config = DataConfig(shards=str(tmp_path), workers=0, cache=0)
        with evaluation_batches(config, Index.open(str(tmp_path)), batch=7) as batches:
            found = {
                number_of(image.numpy()): int(label)
                for batch in batches
                for image, label, weight in zip(batch.images, batch.conditions["label"], batch.weights, strict=True)
                if weight
            }
        assert found == {number: number % 7 for number in range(60)}
    assert verify_shard(Index.open(str(tmp_path)), 0).bad == []


class Bounded:
    """Asserts that the block takes little memory, however much a header claims."""

    def __enter__(self) -> None:
        self._before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def __exit__(self, *error: object) -> None:
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - self._before < 200_000  # KiB


def test_a_member_of_20_gigabytes_of_nothing_is_not_read(tmp_path):
    size = 20 << 30
    info = tarfile.TarInfo("big.png")
    info.size = size
    with (tmp_path / "0.tar").open("wb") as stream:
        stream.write(info.tobuf(tarfile.GNU_FORMAT))
        stream.seek(size, os.SEEK_CUR)
        rest = io.BytesIO()
        with tarfile.open(fileobj=rest, mode="w") as tar:
            small = tarfile.TarInfo("small.png")
            small.size = len(png())
            tar.addfile(small, io.BytesIO(png()))
        stream.write(rest.getvalue())
    with Bounded():
        scan = scan_tar(Storage(str(tmp_path)), "0.tar")
    assert [s.key for s in scan.samples] == ["small"]
    assert scan.bad == [("big", "'big.png' has 21,474,836,480 bytes; the limit is 1,073,741,824")]


def test_a_header_that_claims_to_be_long_is_not_read(tmp_path):
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1 << 30
    with (tmp_path / "0.tar").open("wb") as stream:
        stream.write(info.tobuf(tarfile.GNU_FORMAT))
        stream.truncate(2 << 30)
    with Bounded():
        ((key, reason),) = scan_tar(Storage(str(tmp_path)), "0.tar").bad
    assert (key, reason.partition(" at")[0]) == ("", "damaged: a header of more than 1,048,576 bytes")


def test_thousands_of_extensions_are_not_as_many_columns(tmp_path):
    write_members(tmp_path / "0.tar", [m for n in range(3000) for m in ((f"{n}.png", png()), (f"{n}.x{n}", b""))])
    index_shards(str(tmp_path), f"{tmp_path}/index")
    table = Index.open(str(tmp_path)).members(0)
    assert (table.num_rows, table.num_columns) == (3000, 1 + 3 * 64)
    assert "png.offset" in table.column_names


@pytest.mark.parametrize(
    "shape", ["(-1, -16)", "(True, 16)", "(1099511627776, 16)", "(4, 4, 1099511627776)", "(0, 16)"]
)
def test_arrays_of_impossible_shapes_are_quarantined(tmp_path, shape):
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.zeros((1, 16), np.uint8))
    data = stream.getvalue()
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': %s, }" % shape.encode()
    crafted = data[:10] + header.ljust(len(data) - 16 - 10 - 1) + b"\n" + data[-16:]
    write_members(tmp_path / "0.tar", [("a.npy", crafted), ("b.npy", data)])
    scan = scan_tar(Storage(str(tmp_path)), "0.tar")
    assert ([s.key for s in scan.samples], [bad.key for bad in scan.bad]) == (["b"], ["a"])
    assert re.match(r"'a\.npy': .*(positive integers|the limit is|16 bytes|does not decode)", scan.bad[0].reason)


def test_a_jpeg_of_thousands_of_scans_is_quarantined_at_once(tmp_path):
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(
        stream, "JPEG", progressive=True
    )
    normal = stream.getvalue()
    last = normal.rindex(b"\xff\xda")
    crafted = normal[:last] + normal[last:-2] * 5000 + normal[-2:]
    write_members(tmp_path / "0.tar", [("a.jpg", crafted), ("b.jpg", normal)])
    began = time.monotonic()
    scan = scan_tar(Storage(str(tmp_path)), "0.tar")
    assert time.monotonic() - began < 5
    assert [s.key for s in scan.samples] == ["b"]
    assert scan.bad[0].reason.startswith(
        "'a.jpg': the image is a JPEG of 64 x 64 pixels in 5,009 scans, too many to decode"
    )
