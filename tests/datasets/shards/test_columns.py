"""The columns of an index: what every image has, and fields of .json members."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cluster.storage.storage import Storage
from datasets.config import DataConfig
from datasets.errors import DataError
from datasets.loading.build import evaluation_batches
from datasets.shards.column_tables import column_file, join_by_key, read_columns, write_columns
from datasets.shards.index import Index
from datasets.shards.index_files import read_schema
from datasets.shards.indexing import IndexOptions, index_shards, scan_one_by_one
from datasets.shards.json_fields import column_of
from tests.datasets.small_sets import number_of, png, write_members, write_set


def jpeg(height: int, width: int, orientation: int = 1) -> bytes:
    """A JPEG in colour, whose EXIF says how it has to be turned."""
    exif = Image.Exif()
    exif[274] = orientation
    stream = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(stream, "JPEG", exif=exif)
    return stream.getvalue()


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two shards; samples 0 to 2 with a .json, and 3 with one that does not parse."""
    write_members(
        tmp_path / "0.tar",
        [
            ("a.jpg", jpeg(10, 30, 6)),
            ("a.txt", "zwölf Boxkämpfer\n".encode()),
            ("a.json", json.dumps({"score": 1, "meta": {"name": "x"}, "tags": [1, 2]}).encode()),
            ("b.png", png(1)),
            ("b.json", json.dumps({"score": 2, "NSFW": "UNLIKELY"}).encode()),
        ],
    )
    write_members(
        tmp_path / "1.tar",
        [
            ("c.png", png(2, channels=3)),
            ("c.json", json.dumps({"score": 0.5, "meta": {"name": 3}}).encode()),
            ("d.png", png(3)),
            ("d.json", b"{"),
        ],
    )
    return tmp_path


def test_every_index_has_sizes_formats_and_checksums(folder):
    index_shards(str(folder), f"{folder}/index")
    index = Index.open(str(folder))
    rows = index.columns(0).to_pylist()
    assert rows[0] == {
        "key": "a",
        "width": 10,  # upright
        "height": 30,
        "format": "jpeg",
        "grey": False,
        "orientation": 6,
        "bytes": len(jpeg(10, 30, 6)),
        "crc32": index.members(0).column("jpg.crc32")[0].as_py(),
        "label": None,
        "caption_length": 16,
    }
    assert (rows[1]["format"], rows[1]["grey"], rows[1]["orientation"], rows[1]["caption_length"]) == (
        "png",
        True,
        1,
        None,
    )
    assert [row["grey"] for row in index.columns(1).to_pylist()] == [False, True]


def test_fields_of_json_members_are_columns_of_the_type_that_they_have(folder):
    fields = ("json.score", "json.meta.name", "json.tags", "json.NSFW", "json.none")
    index_shards(str(folder), f"{folder}/index", IndexOptions(columns=fields))
    first, second = (Index.open(str(folder)).columns(number).select(fields).to_pydict() for number in range(2))
    assert first == {
        "json.score": [1, 2],
        "json.meta.name": ["x", None],
        "json.tags": ["[1, 2]", None],
        "json.NSFW": [None, "UNLIKELY"],
        "json.none": [None, None],
    }
    assert second["json.score"] == [0.5, None]
    schema = read_schema(f"{folder}/index")
    assert [str(schema.field(name).type) for name in fields] == ["double", "string", "string", "string", "null"]


def test_columns_are_added_kept_and_removed(folder):
    def update(columns: tuple[str, ...] | None) -> tuple[int, tuple[str, ...]]:
        done = index_shards(str(folder), f"{folder}/index", IndexOptions(columns=columns))
        return done.scanned, done.meta.columns

    assert update(None) == (2, ())
    assert update(("json.score",)) == (2, ("json.score",))
    assert update(("json.NSFW",)) == (2, ("json.score", "json.NSFW"))
    assert update(None) == (0, ("json.score", "json.NSFW"))
    write_members(folder / "2.tar", [("e.png", png(9)), ("e.json", b'{"score": 7}')])
    assert update(None) == (1, ("json.score", "json.NSFW"))
    assert Index.open(str(folder)).columns(2).column("json.score").to_pylist() == [7]
    assert update(()) == (0, ())


def test_the_fingerprint_does_not_depend_on_columns(folder):
    index_shards(str(folder), f"{folder}/index")
    before = Index.open(str(folder)).fingerprint
    index_shards(str(folder), f"{folder}/index", IndexOptions(columns=("json.score",)))
    assert Index.open(str(folder)).fingerprint == before


def test_an_index_without_columns_trains_and_is_completed_by_indexing_again(tmp_path):
    write_set(tmp_path, [3, 2])
    (tmp_path / "index" / column_file("0000.tar")).unlink()
    index = Index.open(str(tmp_path))
    assert index.members(0).num_rows == 3
    with pytest.raises(DataError, match=r"the column table of 0000.tar is missing; run python -m jobs.index"):
        index.columns(0)
    assert index_shards(str(tmp_path), f"{tmp_path}/index").scanned == 1
    assert Index.open(str(tmp_path)).columns(0).num_rows == 3


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([True, None], "bool"),
        ([1, None, -3], "int64"),
        ([1, 2.5], "double"),
        ([1 << 64, 1], "double"),
        ([True, 1], "string"),
        (["a", 1, None], "string"),
        ([{"a": 1}], "string"),
        (["\ud800"], "string"),
        ([10**400], "double"),
        ([None], "null"),
    ],
)
def test_values_of_json_become_columns(values, kind):
    column = column_of(values)
    assert str(column.type) == kind
    column.validate(full=True)
    assert [value is None for value in column.to_pylist()] == [value is None for value in values]


def test_tables_of_others_are_joined_by_key(tmp_path):
    keys = pa.chunked_array([["a", "b"], ["c"]])
    location = Storage(str(tmp_path))
    write_columns(location, "x/0.tar", pa.table({"key": ["c", "z", "a"], "bound.nats": [3.0, 0.0, 1.0]}))
    table = read_columns(location, "x/0.tar")
    assert join_by_key(keys, table).tolist() == [2, -1, 0]
    assert join_by_key(table.column("key"), table).tolist() == [0, 1, 2]
    with pytest.raises(DataError, match="key 'a' is in more than one row"):
        join_by_key(keys, pa.table({"key": ["a", "b", "a"]}))


@pytest.mark.parametrize(
    "table",
    [
        pa.table({"nats": [1.0], "key": ["a"]}),
        pa.table({"key": [1]}),
        pa.table({"key": pa.array([None], pa.string())}),
        pa.Table.from_arrays([pa.array(["a"]), pa.array([1]), pa.array([2])], names=["key", "x", "x"]),
    ],
)
def test_other_tables_are_no_column_tables(tmp_path, table):
    with pytest.raises(ValueError, match=r"column|key"):
        write_columns(Storage(str(tmp_path)), "0.tar", table)
    assert not list(tmp_path.iterdir())


def test_columns_of_img2dataset_are_joined_by_key(folder):
    rows = {"key": ["b", "z", "a"], "similarity": [0.25, 9, 0.5], "NSFW": ["no", "x", None], "hash": [[1], [2], [3]]}
    pq.write_table(pa.table(rows), folder / "0.parquet")
    done = index_shards(
        str(folder), f"{folder}/index", IndexOptions(columns=("parquet", "parquet.none")), scan_one_by_one
    )
    assert done.problems == ["1.parquet: no such file"]
    index = Index.open(str(folder))
    names = ["parquet.similarity", "parquet.NSFW", "parquet.none"]
    assert index.columns(0).select(names).to_pylist() == [
        dict(zip(names, (0.5, None, None), strict=True)),
        dict(zip(names, (0.25, "no", None), strict=True)),
    ]
    assert "parquet.hash" not in index.columns(0).column_names
    (folder / "1.parquet").write_bytes(b"PAR1")
    (folder / "index" / column_file("1.tar")).unlink()
    done = index_shards(str(folder), f"{folder}/index")
    assert (done.scanned, len(done.problems)) == (1, 1)
    assert "not a Parquet file" in done.problems[0]


def test_images_that_look_alike_have_one_perceptual_hash(tmp_path):
    height, width = 120, 160
    y, x = np.mgrid[:height, :width] / 20
    picture = Image.fromarray((127 + 60 * np.sin(x * y) + 60 * np.cos(x - 2 * y)).astype(np.uint8))

    def encoded(image: Image.Image, format: str, **options: int) -> bytes:
        stream = io.BytesIO()
        image.save(stream, format, **options)
        return stream.getvalue()

    flat = Image.new("L", (50, 40), 99)
    images = {
        "a.png": encoded(picture, "PNG"),
        "b.jpg": encoded(picture, "JPEG", quality=90),
        "c.webp": encoded(picture.resize((320, 240)), "WEBP", quality=95),
        "d.png": encoded(picture.transpose(Image.Transpose.ROTATE_90), "PNG"),
        "e.png": encoded(flat, "PNG"),
        "f.jpg": encoded(flat.resize((90, 30)), "JPEG"),
        "g.png": encoded(picture, "PNG")[:2000],
    }
    write_members(tmp_path / "0.tar", list(images.items()))
    index_shards(str(tmp_path), f"{tmp_path}/index", IndexOptions(columns=("phash",)))
    a, b, c, d, e, f, g = Index.open(str(tmp_path)).columns(0).column("phash").to_pylist()
    assert (a ^ b).bit_count() <= 2
    assert (a ^ c).bit_count() <= 2
    assert (a ^ d).bit_count() > 16
    assert e == f == 1
    assert g is None


def test_data_image_is_the_image_that_the_set_is_indexed_for(tmp_path):
    images = {"image.png": 0, "mask.png": 50}
    members = [(f"{n}.{name}", png(n + offset)) for n in range(3) for name, offset in images.items()]
    write_members(tmp_path / "0.tar", members)
    url = str(tmp_path)
    index_shards(url, f"{url}/index", IndexOptions(image="image.png"))
    index_shards(url, f"{url}/index-mask.png", IndexOptions(image="mask.png"))
    assert Index.of(DataConfig(shards=url)).images == 3
    assert Index.of(DataConfig(shards=url, image="image.png")).images == 3
    masks = DataConfig(shards=url, index=f"{url}/index-mask.png", image="mask.png", workers=0)
    with evaluation_batches(masks, Index.of(masks), batch=3) as batches:
        assert [number_of(image.numpy()) for image in next(iter(batches)).images] == [50, 51, 52]
    assert Index.of(masks).members(0).column("image.png.size").to_pylist() == [len(png(n)) for n in range(3)]
    command = f"python -m jobs.index {url} --image mask.png --out {url}/index-mask.png"
    with pytest.raises(DataError, match=rf"is the index of .image.png, not of data.image mask.png; .*: {command}"):
        Index.of(DataConfig(shards=url, image="mask.png"))
    with pytest.raises(DataError, match=r"index of .image.png, not of data.image mask.png"):
        Index.held_out(masks.model_copy(update={"validation": url}))
    assert Index.of(DataConfig(shards=url)).fingerprint != Index.of(masks).fingerprint
