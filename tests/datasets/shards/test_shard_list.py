"""Folders, shards and patterns: a path that exists is itself before it is a pattern."""

from __future__ import annotations

import pytest

from cluster.storage.storage import Storage
from datasets.errors import DataError
from datasets.shards.index import Index
from datasets.shards.indexing import index_shards
from datasets.shards.shard_list import ShardList
from tests.datasets.small_sets import png, write_members

ODD = ("photos [2023]", "set{a,b}", "what?", "a*b", "50% #1", "x.tar", "a[0-9]/{0..1}/c")


@pytest.mark.parametrize("name", ODD)
def test_a_folder_with_wildcards_in_its_name_is_that_folder(tmp_path, name):
    folder = tmp_path / name / "train"
    for number in range(3):
        write_members(folder / f"{number}.tar", [(f"{number}.png", png(number))])
    index_shards(str(folder), f"{folder}/index")
    assert Index.open(str(folder)).images == 3
    assert Index.open(f"{folder}/{{0..1}}.tar").images == 2
    assert Index.open(f"{folder}/[12].tar").images == 2
    assert Index.open(f"{folder}/0.tar").images == 1
    assert Index.open(f"{folder}/").url == str(folder)


def test_a_shard_with_wildcards_in_its_name_is_that_shard(tmp_path):
    for name in ("a[1].tar", "a1.tar", "b{1,2}.tar", "b1.tar"):
        write_members(tmp_path / name, [(f"{name.partition('.')[0]}.png", png())])
    index_shards(str(tmp_path), f"{tmp_path}/index")
    for name in ("a[1].tar", "b{1,2}.tar"):
        index = Index.open(f"{tmp_path}/{name}")
        assert [index.name(number) for number in range(len(index))] == [name]
    with pytest.raises(DataError, match=r"no folder or shard has this name, and none matches c\*\.tar"):
        Index.open(f"{tmp_path}/c*.tar")


def test_patterns_of_names_that_do_not_exist(tmp_path):
    assert ShardList.parse(f"{tmp_path}/{{train,val}}/0.tar") == (str(tmp_path), ("train/0.tar", "val/0.tar"))
    with pytest.raises(DataError, match="a pattern needs a folder before its first"):
        ShardList.parse("*.tar")


def test_a_folder_of_a_bucket_with_wildcards_in_its_name(tmp_path, s3_environment):
    write_members(tmp_path / "0.tar", [("a.png", png())])
    bucket = s3_environment.bucket("shard-lists")
    url = f"{bucket}/photos [2023]/a*b"
    Storage(url).write("0.tar", (tmp_path / "0.tar").read_bytes())
    index_shards(url, f"{url}/index")
    assert Index.open(url).images == Index.open(f"{url}/*.tar").images == 1
    assert ShardList.parse(f"{bucket}/{{a,b}}/0.tar") == (bucket, ("a/0.tar", "b/0.tar"))
