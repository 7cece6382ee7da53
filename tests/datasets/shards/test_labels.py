"""Labels that are numbers or names, in .cls members or in fields of .json members."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from datasets.config import DataConfig
from datasets.errors import DataError
from datasets.loading.build import evaluation_batches
from datasets.shards.index import Index
from datasets.shards.indexing import IndexOptions, index_shards
from tests.datasets.small_sets import png, write_members


def write(path: Path, labels: list[bytes | None], member: str = "cls") -> None:
    """A shard of samples with these labels; None: without."""
    members = []
    for number, label in enumerate(labels):
        members.append((f"{path.stem}-{number}.png", png(number)))
        if label is not None:
            members.append((f"{path.stem}-{number}.{member}", label))
    write_members(path, members)


def classes_of(url: str) -> list[int]:
    """The classes of a set as batches have them."""
    with evaluation_batches(DataConfig(shards=url, workers=0), Index.open(url), batch=4) as batches:
        return [int(label) for batch in batches for label in batch.conditions["label"][batch.weights > 0]]


def test_class_names_are_numbered_in_order_and_keep_their_number(tmp_path):
    write(tmp_path / "0.tar", [b"zebra", b"cat\n", b"cat", b"\xff", b" "])
    write(tmp_path / "1.tar", [b"snow  leopard"])
    named = IndexOptions(named_labels=True)
    done = index_shards(str(tmp_path), f"{tmp_path}/index", named)
    assert (done.meta.class_names, done.meta.classes) == (("cat", "snow leopard", "zebra"), 3)
    assert [reason.partition(": label")[2] for reason in done.quarantine.column("reason").to_pylist()] == [
        ": not UTF-8, or too long for a class name",
        " '' is not a class name of 1 to 256 bytes",
    ]
    assert classes_of(str(tmp_path)) == [2, 0, 0, 1]
    assert Index.open(str(tmp_path)).columns(0).column("label_name").to_pylist() == ["zebra", "cat", "cat"]
    write(tmp_path / "2.tar", [b"ant", b"zebra"])
    assert index_shards(str(tmp_path), f"{tmp_path}/index").meta.class_names == ("cat", "snow leopard", "zebra", "ant")
    assert classes_of(str(tmp_path)) == [2, 0, 0, 1, 3, 2]


def test_given_class_names_come_first(tmp_path):
    write(tmp_path / "0.tar", [b"zebra", b"cat", b"ant"])
    options = IndexOptions(class_names=("zebra", "yak"), named_labels=True)
    done = index_shards(str(tmp_path), f"{tmp_path}/index", options)
    assert done.meta.class_names == ("zebra", "yak", "ant", "cat")
    assert classes_of(str(tmp_path)) == [0, 3, 2]


def test_labels_are_in_a_field_of_the_json_members(tmp_path):
    values = [7, "3", 1.5, None, True, -1, 10**18]
    write(tmp_path / "0.tar", [json.dumps({"meta": {"class": value}}).encode() for value in values], "json")
    done = index_shards(str(tmp_path), f"{tmp_path}/index", IndexOptions(labels="json.meta.class", max_bad=1))
    assert done.meta.classes == 8
    assert [reason.rpartition(": ")[2] for reason in done.quarantine.column("reason").to_pylist()] == [
        "a float in the .json, expected a number or text",
        "has no json.meta.class, but '0-0' has one",
        "a bool in the .json, expected a number or text",
        "label '-1' is not a non-negative integer",
        "label 1000000000000000000; the limit is 1048575",
    ]
    assert classes_of(str(tmp_path)) == [7, 3]
    assert index_shards(str(tmp_path), f"{tmp_path}/index", IndexOptions(max_bad=1)).scanned == 0
    assert index_shards(str(tmp_path), f"{tmp_path}/index", IndexOptions(labels="")).meta.classes == 0


def test_names_in_json_members(tmp_path):
    write(tmp_path / "0.tar", [b'{"kind": "dog"}', b'{"kind": 5}', b'{"kind": "cat"}', b"{"], "json")
    options = IndexOptions(labels="json.kind", named_labels=True)
    done = index_shards(str(tmp_path), f"{tmp_path}/index", options)
    assert done.meta.class_names == ("5", "cat", "dog")
    assert "the .json cannot be read" in done.quarantine.column("reason")[0].as_py()
    assert classes_of(str(tmp_path)) == [2, 0, 1]


def test_labels_in_different_places_are_not_mixed(tmp_path):
    write(tmp_path / "a" / "0.tar", [b"1", b"0"])
    write(tmp_path / "b" / "0.tar", [b'{"kind": 1}', b'{"kind": 0}'], "json")
    index_shards(f"{tmp_path}/a", f"{tmp_path}/a/index")
    index_shards(f"{tmp_path}/b", f"{tmp_path}/b/index", IndexOptions(labels="json.kind"))
    index = Index.open([f"{tmp_path}/a", f"{tmp_path}/b"])
    assert index.labels_differ == f"labels are in different places: {tmp_path}/b in json.kind and {tmp_path}/a in .cls"
    assert index.classes == 0


@pytest.mark.parametrize(("labels", "columns"), [("txt", None), (None, ("similarity",)), (None, ("json.",))])
def test_impossible_places_are_refused(tmp_path, labels, columns):
    with pytest.raises(DataError, match=r"not a field of .json members|is no column"):
        index_shards(str(tmp_path), f"{tmp_path}/index", IndexOptions(labels=labels, columns=columns))


def test_a_shard_without_labels_among_labelled_ones_is_quarantined_with_the_reason(tmp_path):
    write(tmp_path / "0.tar", [None, None])
    assert index_shards(str(tmp_path), f"{tmp_path}/index").meta.classes == 0
    write(tmp_path / "1.tar", [b"1", b"0", None, b"0", b"1", b"1"])
    done = index_shards(str(tmp_path), f"{tmp_path}/index")
    assert (done.meta.classes, [shard.images for shard in done.shards]) == (2, [0, 5])
    assert done.quarantine.column("reason").to_pylist() == [
        "has no .cls, but shard 1.tar has one",
        "has no .cls, but shard 1.tar has one",
        "has no .cls, but '1-0' has one",
    ]
    assert classes_of(str(tmp_path)) == [1, 0, 0, 1, 1]
    with pytest.raises(DataError, match=r"has no \.cls, but shard 1\.tar has one"):
        index_shards(str(tmp_path), f"{tmp_path}/index", IndexOptions(on_bad="stop"))
    (tmp_path / "1.tar").unlink()
    assert index_shards(str(tmp_path), f"{tmp_path}/index").shards[0].images == 2
