"""Hostile tars: an index or one clear line, never a crash, a hang, a written file or run code.

FUZZ_SECONDS in the environment makes it go on for so long (43 minutes of it were run once); by default, seconds.
"""

from __future__ import annotations

import io
import os
import struct
import tarfile
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.storage.storage import Storage
from datasets.packing.encoding import encode
from datasets.reading.verify import verify_shard
from datasets.shards.index import Index
from datasets.shards.indexing import IndexOptions, index_shards, member_table
from datasets.shards.scan import scan_tar
from tests.datasets.small_sets import image_of, png

EXAMPLES = 150


def tar_of(name: str, data: bytes = b"") -> bytes:
    """A tar of one file."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def npy(image: np.ndarray) -> bytes:
    """An .npy file."""
    stream = io.BytesIO()
    np.save(stream, image)
    return stream.getvalue()


NAMES = st.one_of(
    st.sampled_from(["\udcff.png", "a\nb.png", "new\nline.cls"]),
    st.sampled_from(
        ["a.png", "a.cls", "b.png", "b.cls", "../up.png", "/etc/x.png", "a/b.png", ".png", "a.", "..", "c.npy", "d.jpg"]
    ),
    st.text(min_size=1, max_size=120).filter(lambda name: "\0" not in name),
)
IMAGES = [png(), png(1, 3), *(encode(image_of(2, 3), kind) for kind in ("jpg", "webp")), npy(image_of(3))]
BOMB = struct.pack(">8sI4sIIBBBBB", b"\x89PNG\r\n\x1a\n", 13, b"IHDR", 1 << 20, 1 << 20, 8, 2, 0, 0, 0)
BOMB += struct.pack(">I", zlib.crc32(BOMB[12:]))
SPARSE = ("major", "minor", "realsize", "map", "size", "numblocks", "name", "offset", "numbytes")
PAX_KEYS = ["path", "linkpath", "size", "mtime", "uid", "hdrcharset", *(f"GNU.sparse.{name}" for name in SPARSE)]
PAX_VALUES = ["", "0", "1", "-1", "9" * 20, "1e9", "0,5,9", "a.png", "../x.png", "BINARY", "\udcff"]
PAX = st.dictionaries(st.sampled_from(PAX_KEYS), st.sampled_from(PAX_VALUES), max_size=4)
KINDS = st.sampled_from([*map(bytes, ([b] for b in b"01234567")), b"x", b"g", b"L", b"K", b"S", b"\0", b"Z"])
FORMATS = st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])


@st.composite
def contents(draw: st.DrawFn) -> bytes:
    """An image, intact or damaged, or with a huge stated size; a label; random bytes; a tar in a tar."""
    data = bytearray(draw(st.sampled_from([*IMAGES, BOMB, b"1", b"9" * 40, tar_of("x.png")])))
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.integers(0, len(data) - 1))
        data[place] = draw(st.integers(0, 255))
    if draw(st.integers(0, 5)) == 0:
        del data[draw(st.integers(0, len(data))) :]
    return bytes(data) if draw(st.booleans()) else draw(st.one_of(st.just(bytes(data)), st.binary(max_size=700)))


@st.composite
def tars(draw: st.DrawFn) -> bytes:
    """Members of any name and kind, then bytes changed, inserted, deleted or cut; headers with valid checksums."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=draw(FORMATS), errors="surrogateescape") as tar:
        for _ in range(draw(st.integers(0, 6))):
            info = tarfile.TarInfo(draw(NAMES))
            data = draw(contents())
            info.size = len(data)
            info.type = draw(st.one_of(st.just(b"0"), KINDS))
            info.linkname = draw(st.sampled_from(["", "a.png", "/etc/passwd", "../../x"]))
            info.pax_headers = draw(PAX)
            try:
                tar.addfile(info, io.BytesIO(data))
            except (ValueError, UnicodeError):
                continue  # what tarfile does not write
    data = bytearray(stream.getvalue())
    for _ in range(draw(st.integers(0, 4))):
        _spoil(draw, data)
    return bytes(data)


def _spoil(draw: st.DrawFn, data: bytearray) -> None:
    if not data:
        return
    how = draw(st.sampled_from(["flip", "cut", "insert", "field"]))
    place = draw(st.integers(0, len(data) - 1))
    if how == "flip":
        data[place] ^= draw(st.integers(1, 255))
    elif how == "cut":
        del data[place:]
    elif how == "insert":
        data[place:place] = draw(st.binary(max_size=600))
    else:  # a crafted header field with a valid checksum
        block = place // 512 * 512
        header = data[block : block + 512]
        if len(header) == 512:
            at, size = draw(st.sampled_from([(100, 8), (124, 12), (156, 1), (257, 8), (345, 155), (483, 29)]))
            value = draw(
                st.one_of(st.binary(min_size=size, max_size=size), st.just(b"\xff" * size), st.just(b"7" * size))
            )
            header[at : at + size] = value[:size]
            header[148:156] = b" " * 8
            header[148:156] = b"%06o\0 " % sum(header)
            data[block : block + 512] = header


def check(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "s.tar").write_bytes(data)
        scan = scan_tar(Storage(folder), "s.tar")
        assert all(bad.reason and "\n" not in bad.reason for bad in scan.bad)
        keys = [sample.key for sample in (*scan.samples, *scan.bad)]
        assert len(keys) == len(set(keys))
        assert member_table(scan.samples).num_rows == len(scan.samples)
        for sample in scan.samples:
            for member in sample.members.values():
                assert 0 <= member.offset <= member.offset + member.size <= len(data)
        if scan.samples:
            check_images(folder, [sample.key for sample in scan.samples])
        assert sorted(os.listdir(folder)) in (["s.tar"], ["index", "s.tar"])


def check_images(folder: str, keys: list[str]) -> None:
    """Every indexed sample decodes, or raises a one-line error with its key."""
    done = index_shards(folder, f"{folder}/index", IndexOptions(max_bad=1))
    (shard,) = done.shards
    assert (shard.images, shard.quarantined) == (
        len(keys),
        sum(key != "" for key in done.quarantine["key"].to_pylist()),
    )
    bad = verify_shard(Index.open(folder), 0).bad
    assert {key for key, _ in bad} <= set(keys)
    assert not any("\n" in reason for _, reason in bad)


@given(tars())
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_crafted_tar_is_indexed_or_refused_in_one_line(data):
    check(data)


@given(st.binary(max_size=3000))
@settings(max_examples=EXAMPLES // 3, deadline=None)
def test_any_bytes_are_indexed_or_refused_in_one_line(data):
    check(data)


@pytest.mark.skipif("FUZZ_SECONDS" not in os.environ, reason="FUZZ_SECONDS=3600 for an hour of it")
@pytest.mark.timeout(0)
def test_crafted_tars_for_a_given_time():
    deadline = time.monotonic() + float(os.environ["FUZZ_SECONDS"])

    @given(tars())
    @settings(max_examples=500, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    def some(data: bytes) -> None:
        check(data)

    while time.monotonic() < deadline:
        some()


def test_a_nested_archive_is_not_an_image(tmp_path):
    (tmp_path / "s.tar").write_bytes(tar_of("a.png", tar_of("x.png")))
    ((_, reason),) = scan_tar(Storage(str(tmp_path)), "s.tar").bad
    assert reason.startswith("'a.png': the image does not decode")


def test_a_member_with_a_huge_stated_size_allocates_no_memory(tmp_path):
    info = tarfile.TarInfo("a.png")
    info.size = 1 << 62
    (tmp_path / "s.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    ((key, reason),) = scan_tar(Storage(str(tmp_path)), "s.tar").bad
    assert key == ""
    assert reason.startswith("truncated: 'a.png' extends beyond")
