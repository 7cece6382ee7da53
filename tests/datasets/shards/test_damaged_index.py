"""An index that is damaged or crafted is refused in one line, before anything is opened that it names."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest

from cluster.storage.storage import Storage
from datasets.errors import DataError
from datasets.order.order import Range
from datasets.reading.shard_reader import ShardReader
from datasets.shards.index import Index
from datasets.shards.index_files import encode_table
from datasets.shards.indexing import IndexOptions, index_shards
from tests.datasets.small_sets import write_set
from tests.testbed.jobs import call_job

BIG = 1 << 63


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A set of two shards with 3 and 4 images."""
    write_set(tmp_path / "set", [3, 4])
    return tmp_path / "set"


def read_arrow(path: Path) -> pa.Table:
    return pa.ipc.open_file(pa.BufferReader(path.read_bytes())).read_all()


def replace(path: Path, column: str, values: list[object], kind: pa.DataType | None = None) -> None:
    """Replace a column of an Arrow file."""
    table = read_arrow(path)
    at = table.schema.get_field_index(column)
    values = [*values, *table.column(column).to_pylist()[len(values) :]]
    path.write_bytes(encode_table(table.set_column(at, column, pa.array(values, kind or table.schema.field(at).type))))


def refused(folder: Path, match: str) -> None:
    with pytest.raises(DataError, match=match) as caught:
        ShardReader(Index.open(str(folder))).read(Range(0, 0, 3))
    assert "\n" not in str(caught.value)
    assert "python -m jobs.index" in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("channels", "3"),
        ("channels", True),
        ("channels", -1),
        ("height", 1.5),
        ("width", BIG),
        ("levels", 1),
        ("levels", None),
        ("classes", -7),
        ("classes", [1]),
        ("class_names", [1, 2]),
        ("class_names", ["a"] * 100),
        ("class_names", None),
        ("source", {}),
        ("unheard_of", 1),
    ],
)
def test_a_wrong_value_in_index_json_is_named(folder, key, value):
    path = folder / "index" / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    refused(folder, rf"index\.json: damaged \(.*({key}|NoneType)")


@pytest.mark.parametrize("text", ["", "[]", "null", "3", "{", "[" * 100_000, '{"version": 1' + "0" * 5000, "\xff"])
def test_an_index_json_that_is_none_is_damaged(folder, text):
    (folder / "index" / "index.json").write_text(text, "latin-1")
    refused(folder, r"index\.json: damaged")


def test_an_index_json_of_terabytes_is_not_read(folder):
    with (folder / "index" / "index.json").open("r+b") as file:
        file.truncate(1 << 42)
    with pytest.raises(DataError, match=r"index\.json: has 4,398,046,511,104 bytes, expected at most"):
        Index.open(str(folder))


@pytest.mark.parametrize(
    "name",
    ["../x.tar", "/etc/passwd", "a/../../x", "", "s3://other/x.tar", "file:///etc/x", "a//b", "./x", "a\0b"],
)
def test_a_shard_outside_the_folder_is_refused_before_it_is_opened(folder, name):
    replace(folder / "index" / "shards.arrow", "name", [name])
    refused(folder, r"shards\.arrow: damaged \(name: .* is not a path below the folder")


@pytest.mark.parametrize(
    ("column", "values", "kind", "reason"),
    [
        ("name", [None], None, "name: 1 rows have no value"),
        ("name", ["0001.tar"], None, "name: a shard is listed twice"),
        ("name", [b"a", b"b"], pa.binary(), "not a table of shards"),
        ("images", [-1], None, "images: -1 is not a number from 0"),
        ("images", [None], None, "images: 1 rows have no value"),
        ("images", [(1 << 63) - 1] * 2, None, "images: 9223372036854775807 is not"),
        ("images", [1 << 40] * 2, None, "images: more than"),
        ("images", [1.5], pa.float64(), "not a table of shards"),
        ("bytes", [-5], None, "bytes: -5 is not a number"),
        ("grey", [4], None, "grey: more grey images"),
        ("classes", [-1], None, "classes: -1"),
        ("height", [-1], None, "height: -1"),
    ],
)
def test_a_row_that_no_shard_has_is_named(folder, column, values, kind, reason):
    replace(folder / "index" / "shards.arrow", column, values, kind)
    refused(folder, rf"shards\.arrow: damaged \({reason}")


@pytest.mark.parametrize(
    ("column", "values", "kind", "reason"),
    [
        ("key", [None], None, "key: a row has no value"),
        ("png.offset", [-5], None, "png: the member in row 0 is not within"),
        ("png.offset", [1 << 62], None, "png: the member in row 0"),
        ("png.offset", [None], None, "png: the member in row 0"),
        ("png.size", [-2], None, "png: the member in row 0"),
        ("png.size", [(1 << 63) - 1], None, "png: the member in row 0"),
        ("png.size", [1 << 40], None, "png: the member in row 0"),
        ("png.offset", [1.0], pa.float64(), "its columns are not those"),
        ("png.crc32", [1], pa.int64(), "its columns are not those"),
    ],
)
def test_a_member_that_no_shard_has_is_named(folder, column, values, kind, reason):
    replace(folder / "index" / "members" / "0000.tar.arrow", column, values, kind)
    refused(folder, rf"the member table of 0000\.tar is damaged \({reason}")


def test_member_tables_have_whole_triples_of_columns(folder):
    path = folder / "index" / "members" / "0000.tar.arrow"
    for columns in (["key"], ["png.offset"], ["key", "png.offset", "png.size"], ["key", "png.size", "png.offset"]):
        table = read_arrow(path)
        path.write_bytes(encode_table(table.select(columns)))
        if columns != ["key"]:
            refused(folder, r"the member table of 0000\.tar is damaged \(its columns")
        path.write_bytes(encode_table(table))


def test_strings_whose_offsets_leave_their_buffer_are_damage(folder):
    """Arrow reads such a file, and crashes when a string is asked for."""
    path = folder / "index" / "shards.arrow"
    data = path.read_bytes()
    at = data.index(b"0000.tar0001.tar")  # the names; their offsets 0, 8, 16 come before, padded
    offsets = data.rindex((8).to_bytes(4, "little") + (16).to_bytes(4, "little"), 0, at)
    path.write_bytes(data[:offsets] + (1 << 30).to_bytes(4, "little") * 2 + data[offsets + 8 :])
    refused(folder, r"shards\.arrow: damaged")


def contents(folder: Path) -> dict[str, bytes]:
    index = folder / "index"
    return {str(path.relative_to(index)): path.read_bytes() for path in sorted(index.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("name", ["members/0001.tar.arrow", "shards.arrow", "quarantine.arrow", "index.json"])
@pytest.mark.parametrize("damage", ["empty", "cut", "zero", "missing", "one byte"])
def test_indexing_again_repairs_what_is_damaged(folder, name, damage):
    index_shards(str(folder), str(folder / "index"), IndexOptions(class_names=tuple("abcdefgh")))
    before = contents(folder)
    path = folder / "index" / name
    data = path.read_bytes()
    other = bytearray(data)
    other[len(data) // 2] ^= 255
    damaged = {"empty": b"", "cut": data[: len(data) // 2], "zero": bytes(len(data)), "one byte": bytes(other)}
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(damaged[damage])
    done = index_shards(str(folder), str(folder / "index"))
    if name == "index.json":
        assert done.lost == (damage != "missing")
        done = index_shards(str(folder), str(folder / "index"), IndexOptions(class_names=tuple("abcdefgh")))
    elif name.startswith("members/") and damage != "one byte":
        assert done.scanned == 1  # the other is not read again
    after = contents(folder)
    assert after == before
    assert Index.open(str(folder)).images == 7


def test_the_index_command_says_what_it_could_not_restore(folder):
    (folder / "index" / "index.json").write_text("{")
    ran = call_job("index", str(folder))
    assert ran.status == 0
    assert "index.json: was damaged: now 256 levels and 0 class names; if that is wrong, give --levels" in ran.stderr


def test_a_table_that_is_damaged_in_transit_is_read_again(tmp_path, monkeypatch, s3_environment):
    write_set(tmp_path / "set", [3])
    url = f"{s3_environment.bucket('transit')}/set"
    for path in sorted((tmp_path / "set").rglob("*")):
        if path.is_file():
            Storage(url).write(str(path.relative_to(tmp_path / "set")), path)
    opened = Index.open(url)
    reads = []
    whole = Storage.read

    def read(self, path, *limits):
        reads.append(path)
        data = whole(self, path, *limits)
        return data[:100] if len(reads) == 1 else data

    monkeypatch.setattr(Storage, "read", read)
    assert opened.members(0).num_rows == 3
    assert reads == ["0000.tar.arrow"] * 2
    reads[:] = []
    monkeypatch.setattr(Storage, "read", lambda self, path, *limits: whole(self, path, *limits)[:100])
    with pytest.raises(DataError, match="damaged"):
        opened.members(0)
