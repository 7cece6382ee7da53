"""Captioned icons: their words, drawings and splits, and the shards that they are packed into."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import webdataset

from datasets.packing.pack import pack
from datasets.packing.sources.icons.brands import is_brand
from datasets.packing.sources.icons.captions import caption, split_name
from datasets.packing.sources.icons.drawing import COLOURS, draw
from datasets.packing.sources.icons.fonts import FAMILIES, Icon, find_icons
from datasets.packing.sources.icons.source import Icons
from datasets.packing.sources.icons.splits import LEAST, Splits, caption_words, split_icons
from datasets.shards.index import Index
from tests.testbed.jobs import call_job
from tests.testbed.processes import REPOSITORY

pytestmark = pytest.mark.skipif(find_spec("qtawesome") is None, reason="the package qtawesome is not installed")


@pytest.fixture(scope="module")
def icons() -> tuple[Icon, ...]:
    return find_icons()


@pytest.fixture(scope="module")
def splits(icons: tuple[Icon, ...]) -> Splits:
    return split_icons([icon.words for icon in icons])


# ---- names


@pytest.mark.parametrize(
    ("family", "name", "twins", "words"),
    [
        ("material design", "folder-heart-outline", ["folder-heart"], ("folder-heart", "outline")),
        ("material design", "folder-heart", ["folder-heart-outline"], ("folder-heart", "fill")),
        ("material design", "arrow-up-thin", [], ("arrow-up-thin", "regular")),
        ("phosphor", "lock-simple-open-thin", [], ("lock-simple-open", "thin")),
        ("phosphor", "lock-simple-open", ["lock-simple-open-thin"], ("lock-simple-open", "regular")),
        ("remix", "home-2-line", ["home-2-fill"], ("home-2", "outline")),
        ("remix", "line-height", [], ("line-height", "regular")),
        ("font awesome", "fill", [], ("fill", "solid")),
        ("codicons", "heart", ["heart-filled"], ("heart", "outline")),
        ("codicons", "bold", [], ("bold", "regular")),
    ],
)
def test_the_style_is_taken_from_the_name_and_its_twin(family, name, twins, words):
    assert split_name(family, name, {name, *twins}) == words


def test_each_icon_has_words_of_its_own(icons):
    assert {icon.words.family for icon in icons} == set(FAMILIES)
    assert len({icon.key for icon in icons}) == len(icons)
    assert {icon.words.style for icon in icons} == {"outline", "fill", "thin", "light", "bold", "solid", "regular"}
    captions = {caption(icon.words) for icon in icons}
    assert "folder heart, outline, material design" in captions
    assert len(captions) == len(icons)
    assert all(text == text.lower() and text.isascii() and "-" not in text for text in captions)


def test_brands_are_left_out_and_things_of_the_same_name_are_not(icons):
    names = {icon.words.name for icon in icons}
    brands = {"twitter", "facebook", "google", "github", "microsoft", "youtube", "linux", "spotify", "slack", "logo"}
    assert not [name for name in names if set(name.split()) & brands]
    assert not names & {"android", "apple", "windows", "language python", "microsoft word"}
    assert names >= {"food apple", "apple whole", "line height", "file word", "source branch", "multiple windows"}
    assert is_brand("phosphor", "gitlab-logo-simple")
    assert not is_brand("material design", "steam-iron")


# ---- drawings


@pytest.mark.parametrize(("size", "least"), [((24, 24), 102), ((8, 8), 32), ((40, 17), 64)])
def test_every_icon_has_ink_and_none_at_the_border(icons, size, least):
    drawings = np.stack([draw(icon.font, icon.glyph, *size) for icon in icons[::3]])
    assert drawings.shape[1:] == size
    assert drawings.max(axis=(1, 2)).min() >= least
    assert not drawings[:, [0, -1]].any()
    assert not drawings[:, :, [0, -1]].any()


def drawing_of(icons: tuple[Icon, ...], text: str, size: int = 48) -> np.ndarray:
    icon = next(icon for icon in icons if caption(icon.words) == text)
    return draw(icon.font, icon.glyph, size, size).astype(float)


@pytest.mark.parametrize("family", FAMILIES)
def test_icons_are_upright_and_centred(icons, family):
    drawings = np.stack([draw(icon.font, icon.glyph, 24, 24) for icon in icons if icon.words.family == family][:400])
    weights = drawings.sum(axis=0) / drawings.sum()
    rows, columns = np.arange(24) @ weights.sum(axis=1), np.arange(24) @ weights.sum(axis=0)
    assert abs(rows - 11.5) < 0.75
    assert abs(columns - 11.5) < 0.75
    style = {"font awesome": "solid", "remix": "outline"}.get(family, "regular")
    up, down = (drawing_of(icons, f"arrow {way}, {style}, {family}") for way in ("up", "down"))
    assert up[:24].sum() > 1.2 * up[24:].sum()  # the arrow's head
    assert down[24:].sum() > 1.2 * down[:24].sum()


def test_wide_glyphs_are_drawn_smaller_not_cut(icons):
    whole = drawing_of(icons, "truck fast, solid, font awesome", 256)
    small = drawing_of(icons, "truck fast, solid, font awesome", 32)
    shares = []
    for image in (whole, small):
        columns = np.flatnonzero(image.any(axis=0))
        shares.append(image[:, columns[0] : columns[-1] + 1].mean() / 255)
    assert abs(shares[0] - shares[1]) < 0.05
    assert np.flatnonzero(small.any(axis=0))[[0, -1]].tolist() == [2, 29]


@pytest.mark.parametrize("levels", [2, 5, 256])
def test_grey_levels_are_values_and_ink_is_the_highest(levels):
    source = Icons(20, 30, levels)
    images = np.stack([source.example("train", i).image for i in range(300)])
    assert images.shape == (300, 20, 30, 1)
    assert np.unique(images).tolist() == list(range(levels))
    assert source.meta.levels == levels


def test_captions_in_colour_name_the_colours_of_the_image():
    source = Icons(24, 24, colour=True)
    seen = Counter()
    for i in range(400):
        image, _, text, fields = source.example("train", i)
        colours, words = text.decode().split(": ")
        ink, paper = colours.split(" on ")
        record = json.loads(fields)
        assert (record["foreground"], record["background"]) == (ink, paper)
        assert words == f"{record['name']}, {record['style']}, {record['family']}"
        assert (image[[0, -1]] == COLOURS[paper]).all()
        change = np.array(COLOURS[ink], float) - COLOURS[paper]
        along = (image - np.array(COLOURS[paper], float)) @ change / (change @ change)
        assert np.abs(image - (along[:, :, None] * change + COLOURS[paper])).max() < 1  # a mix of the two
        seen[ink, paper] += along.max() > 0.99
    assert len(seen) > 40
    assert sum(seen.values()) > 320  # thin strokes cover no pixel whole


# ---- splits


def test_the_splits_have_the_documented_counts(icons, splits):
    text = (REPOSITORY / "docs/icons.md").read_text()
    for family in FAMILIES:
        counts = [sum(icons[i].words.family == family for i in numbers) for numbers in splits[:4]]
        assert f"| {family} | " + " | ".join(f"{count:,}" for count in (sum(counts), *counts)) + " |" in text
    assert f"{len(icons):,} icons" in text
    assert sorted([i for numbers in splits[:4] for i in numbers]) == list(range(len(icons)))


def test_training_has_no_style_of_a_held_out_name_and_other_styles_of_held_out_images(icons, splits):
    train = {icons[i].words[::2] for i in splits.train}  # name and family
    assert not train & {icons[i].words[::2] for i in splits.names}
    assert 450 <= len(splits.names) <= 600
    twins = sum(icons[i].words[::2] in train for i in splits.validation)
    assert 900 <= len(splits.validation) <= 1100
    assert f"{twins:,} of the {len(splits.validation):,} have" in (REPOSITORY / "docs/icons.md").read_text()


def test_training_has_each_word_of_a_held_out_combination_but_no_icon_with_both(icons, splits):
    counts = Counter(word for i in splits.train for word in caption_words(icons[i].words))
    seen = [set(icons[i].words.name.split()) for i in (*splits.train, *splits.validation, *splits.names)]
    assert not [pair for pair in splits.pairs if any(names.issuperset(pair) for names in seen)]
    for i in splits.combinations:
        assert all(counts[word] >= LEAST for word in caption_words(icons[i].words)), icons[i]
        assert any(set(icons[i].words.name.split()).issuperset(pair) for pair in splits.pairs)
    assert len(splits.pairs) > 80
    assert 300 <= len(splits.combinations) <= 500


# ---- packing


class FewIcons(Icons):
    """The first icons of each split."""

    def count(self, split: str) -> int:
        return min(30, super().count(split))


def test_icons_are_packed_with_captions_and_fields(tmp_path):
    packed = pack(FewIcons(16, 16, levels=2), str(tmp_path))
    assert [(split.split, split.images) for split in packed] == [
        ("train", 30),
        ("validation", 30),
        ("names", 30),
        ("combinations", 30),
    ]
    assert pack(FewIcons(16, 16, levels=2), str(tmp_path))[0].written is False
    meta = Index.open(str(tmp_path / "combinations")).meta
    assert (meta.channels, meta.height, meta.width, meta.levels, meta.classes) == (1, 16, 16, 2, 0)
    assert meta.binarised == "static"
    shards = sorted(str(path) for path in (tmp_path / "train").glob("*.tar"))
    samples = list(webdataset.WebDataset(shards, shardshuffle=False).decode("l8").to_tuple("png", "txt", "json"))
    source = FewIcons(16, 16, levels=2)
    for i, (image, text, record) in enumerate(samples):
        example = source.example("train", i)
        assert np.array_equal(image, example.image[:, :, 0])
        assert text == example.caption.decode() == ", ".join(record.values())
        assert list(record) == ["name", "style", "family"]


PROGRAM = """
import hashlib, sys
from datasets.packing.sources.icons.source import Icons
source, digest = Icons(12, 12, colour=True), hashlib.sha256()
for split in source.splits:
    for i in range(0, source.count(split), 40):
        image, _, caption, fields = source.example(split, i)
        digest.update(image.tobytes() + caption + fields)
assert not {"qtawesome", "qtpy"} & set(sys.modules)
print(digest.hexdigest())
"""


def test_another_process_draws_the_same_icons_without_importing_qt():
    found = {
        subprocess.run(
            [sys.executable, "-c", PROGRAM],
            cwd=REPOSITORY,
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1
    assert len(found.pop().strip()) == 2 * hashlib.sha256().digest_size


# ---- errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--levels", "1"], "icons of 1 levels: 2 to 256 are possible"),
        (["--size", "4", "24"], "icons of 4 x 24 pixels: each side may be 8 to 1024"),
        (["--colour", "--levels", "2"], "icons in colour have 256 levels, not 2"),
    ],
)
def test_impossible_icons_are_one_line_errors(tmp_path, options, message):
    ran = call_job("pack", "--source", "icons", "--out", str(tmp_path), *options)
    assert (ran.status, ran.stderr) == (1, f"error: {message}\n")


def test_missing_fonts_are_a_one_line_error(tmp_path, monkeypatch):
    without = [path for path in sys.path if not (Path(path) / "qtawesome").exists()]
    monkeypatch.setattr(sys, "path", without)
    importlib.invalidate_caches()
    ran = call_job("pack", "--source", "icons", "--out", str(tmp_path))
    assert ran.status == 1
    assert ran.stderr.startswith("error: the icons are fonts of the package qtawesome, which is not installed: ")
    assert ran.stderr.count("\n") == 1
