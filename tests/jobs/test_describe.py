"""jobs.describe: figures counted by hand, and the contact sheet."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from datasets.reading.contact_sheet import contact_sheet
from datasets.shards.index import Index
from datasets.shards.indexing import IndexOptions, index_shards
from jobs import describe
from tests.datasets.selection.scored_sets import write_scored
from tests.datasets.small_sets import image_of, png, write_members, write_set


def test_the_figures_of_a_set(tmp_path, capsys):
    write_scored(tmp_path)
    write_members(tmp_path / "9.tar", [("a.txt", b"no image"), ("b.png", b"<html>"), ("c.png", png(99)), ("._c", b"")])
    index_shards(str(tmp_path), f"{tmp_path}/index")
    assert describe.main([str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{tmp_path}: 41 images in 5 shards")
    assert lines[1] == "43 samples seen = 41 indexed + 2 quarantined, and 1 files that belong to no sample"
    assert lines[2].startswith("  quarantined: 1 like 9.tar: sample 'a': has no image")
    for line in (
        "format: png 41",
        "grey: yes 21, no 20",
        "orientation: 1 41",
        "width x height: 1 different: 6 x 4 41",
        "labels: none",
        "captions: 40 of 41 images",
        "duplicates: 10 images have the bytes of an earlier one",
        "json.score: 32 of 41 images: 0 to 0.8",
    ):
        assert line in lines
    captions = lines[lines.index("caption_length (characters)") + 1 :]
    assert [line.split()[-1] for line in captions] == ["1", "1", "2", "4", "8", "16", "8"]


def test_labels_are_counted_by_name(tmp_path, capsys):
    write_set(tmp_path, [10, 11])
    index_shards(str(tmp_path), f"{tmp_path}/index", IndexOptions(class_names=tuple("abcdefghijk")))
    describe.main([str(tmp_path)])
    expected = (
        "labels: 11 classes, 10 of them with images; fewest 2 (b): a 3, b 2, c 2, d 2, e 2, f 2, g 2, h 2, and 2 more"
    )
    assert expected in capsys.readouterr().out.splitlines()


def test_a_selection_says_what_it_is(tmp_path, capsys):
    from datasets.selection.query import Wanted
    from datasets.selection.select import select

    select(write_scored(tmp_path), f"{tmp_path}/out", Wanted("grey"))
    describe.main([str(tmp_path), "--index", f"{tmp_path}/out"])
    assert f"a selection of {tmp_path}/index: where grey" in capsys.readouterr().out.splitlines()


def test_the_contact_sheet_shows_images_and_crosses_bad_ones(tmp_path, capsys):
    write_members(tmp_path / "0.tar", [("0.png", png(0)), ("1.png", png(1)[:70]), ("2.png", png(2)), ("3.png", png(3))])
    index_shards(str(tmp_path), f"{tmp_path}/index")
    describe.main([str(tmp_path), "--pictures", f"{tmp_path}/sheet.png", "--count", "9"])
    said = capsys.readouterr()
    assert said.out.splitlines()[-1] == f"4 random images: {tmp_path}/sheet.png"
    assert "sample '1': the image does not decode" in said.err
    sheet = np.asarray(Image.open(f"{tmp_path}/sheet.png"))
    assert sheet.shape == (2 * 132 + 4, 2 * 132 + 4, 3)
    height = round(128 * 4 / 6)
    tile = sheet[4 + (128 - height) // 2 :, 4:][:height, :128, 0]
    at = np.ix_(((np.arange(4) + 0.5) * height / 4).astype(int), ((np.arange(6) + 0.5) * 128 / 6).astype(int))
    assert np.array_equal(tile[at], image_of(0)[:, :, 0])


def test_random_images_are_different_ones_and_the_same_for_a_seed(tmp_path):
    write_set(tmp_path, [30, 30])
    index = Index.open(str(tmp_path))
    sheets = [contact_sheet(index, 16, seed)[0] for seed in (0, 0, 1)]
    assert sheets[0] == sheets[1] != sheets[2]
    assert Image.open(io.BytesIO(sheets[0])).size == (4 * 132 + 4, 4 * 132 + 4)
