"""Hostile tars: an index or one clear line, never a crash, a hang, a written file or run code.

FUZZ_SECONDS in the environment makes it go on for so long (an hour's worth was run once); by default it takes seconds.
"""

from __future__ import annotations

import io
import os
import tarfile
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.storage import Storage
from datasets.errors import DataError
from datasets.indexing import member_table
from datasets.scan import scan_tar
from tests.datasets.shards import png

EXAMPLES = 150
NAMES = st.one_of(
    st.sampled_from(["\udcff.png", "a\nb.png", "new\nline.cls"]),
    st.sampled_from(
        ["a.png", "a.cls", "b.png", "b.cls", "../up.png", "/etc/x.png", "a/b.png", ".png", "a.", "..", "c.npy", "d.jpg"]
    ),
    st.text(min_size=1, max_size=120).filter(lambda name: "\0" not in name),
)
CONTENT = st.one_of(st.just(png()), st.just(b"1"), st.binary(max_size=700))
KINDS = st.sampled_from([*map(bytes, ([b] for b in b"01234567")), b"x", b"g", b"L", b"K", b"S", b"\0", b"Z"])
FORMATS = st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])


@st.composite
def tars(draw: st.DrawFn) -> bytes:
    """Members of any name and kind, then bytes changed, put in, taken out or cut off; headers with valid checksums."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=draw(FORMATS), errors="surrogateescape") as tar:
        for _ in range(draw(st.integers(0, 6))):
            info = tarfile.TarInfo(draw(NAMES))
            data = draw(CONTENT)
            info.size = len(data)
            info.type = draw(st.one_of(st.just(b"0"), KINDS))
            info.linkname = draw(st.sampled_from(["", "a.png", "/etc/passwd", "../../x"]))
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
    else:  # a field of a header set to something hostile, the checksum mended
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
        try:
            scan = scan_tar(Storage(folder), "s.tar")
            table = member_table(scan.samples)
        except DataError as error:
            assert "\n" not in str(error)  # noqa: PT017
            assert str(error).startswith(f"{folder}/s.tar: ")  # noqa: PT017
        else:
            assert table.num_rows == len(scan.samples)
            for sample in scan.samples:
                for member in sample.members.values():
                    assert 0 <= member.offset <= member.offset + member.size <= len(data)
        assert os.listdir(folder) == ["s.tar"]


@given(tars())
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_hostile_tar_is_indexed_or_refused_in_one_line(data):
    check(data)


@given(st.binary(max_size=3000))
@settings(max_examples=EXAMPLES // 3, deadline=None)
def test_any_bytes_are_indexed_or_refused_in_one_line(data):
    check(data)


@pytest.mark.skipif("FUZZ_SECONDS" not in os.environ, reason="FUZZ_SECONDS=3600 for an hour of it")
def test_hostile_tars_for_as_long_as_asked():
    deadline = time.monotonic() + float(os.environ["FUZZ_SECONDS"])

    @given(tars())
    @settings(max_examples=500, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    def some(data: bytes) -> None:
        check(data)

    while time.monotonic() < deadline:
        some()


def test_nested_archives_are_no_images(tmp_path):
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("x.png"))
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        info = tarfile.TarInfo("a.png")
        info.size = len(inner.getvalue())
        tar.addfile(info, io.BytesIO(inner.getvalue()))
    with pytest.raises(DataError, match=r"'a\.png': the image does not decode"):
        scan_tar(Storage(str(tmp_path)), "s.tar")


def test_a_member_that_claims_to_be_huge_takes_no_memory(tmp_path):
    info = tarfile.TarInfo("a.png")
    info.size = 1 << 62
    (tmp_path / "s.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(DataError, match="truncated"):
        scan_tar(Storage(str(tmp_path)), "s.tar")
