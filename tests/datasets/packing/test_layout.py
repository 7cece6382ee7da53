"""Splits and classes from the paths of images."""

from __future__ import annotations

import pytest

from datasets.errors import DataError
from datasets.packing.sources.layout import arrange, split_of


def laid_out(*paths: str) -> dict[str, str]:
    """For each image "split class", without the parts that it has not."""
    layout = arrange("set", paths)
    splits = {i: split for split, numbers in layout.splits.items() for i in numbers}
    return {
        path: "outside" if i in layout.outside else f"{splits.get(i, '')} {layout.classes[i]}".strip()
        for i, path in enumerate(paths)
    }


@pytest.mark.parametrize(
    ("split", "names"),
    [
        ("train", ["train", "Train", "TRAINING", "training_set", "train-images", "train2017", "trainset"]),
        ("validation", ["val", "valid", "Validation", "dev", "val_set", "val2017", "devset", "held_out"]),
        ("test", ["test", "Test", "testing", "test_set", "test-images"]),
        ("", ["cat", "trainer", "train_station", "valley", "tests of strength", "tester", "devil", "2017", "images"]),
    ],
)
def test_names_of_splits(split, names):
    assert {name: split_of(name) for name in names} == dict.fromkeys(names, split)


LAYOUTS = {
    "splits and classes": {
        "train/cat/1": "train cat",
        "train/dog/1": "train dog",
        "val/cat/1": "validation cat",
        "test/dog/1": "test dog",
    },
    "capitals": {"Train/a/1": "train a", "Train/b/1": "train b", "Test/a/1": "test a", "Test/b/1": "test b"},
    "sets": {"training_set/1": "train", "test_set/1": "test"},
    "dev": {"train/1": "train", "dev/1": "validation"},
    "below another folder": {"data/train/a/1": "train a", "data/train/b/1": "train b", "data/val/b/1": "validation b"},
    "splits in classes": {"a/train/1": "train a", "b/train/1": "train b", "a/test/1": "test a", "b/test/1": "test b"},
    "classes alone": {"cat/1": "cat", "dog/1": "dog"},
    "no folders": {"1": "", "2": ""},
    "one folder": {"img_align_celeba/1": "", "img_align_celeba/2": ""},
    "one split alone": {"train/a/1": "a", "train/b/1": "b"},
    "flat splits": {"train/1": "train", "val/1": "validation"},
    "Tiny ImageNet": {
        "train/n01/images/1": "train n01",
        "train/n02/images/1": "train n02",
        "val/images/1": "validation",
        "test/images/1": "test",
    },
    "pictures in each class": {"cat/pictures/1": "cat", "dog/pictures/1": "dog"},
    "images in one class": {"cat/images/1": "cat", "dog/1": "dog"},
    "Kaggle's cats and dogs": {"train/cats/1": "train cats", "train/dogs/1": "train dogs", "test/test/1": "test"},
    "one class held out": {"train/a/1": "train a", "train/b/1": "train b", "val/a/1": "validation a"},
    "a class below others": {"animals/cat/1": "cat", "vehicles/car/1": "car"},
    "the same names below others": {"bottle/good/1": "bottle", "bottle/bad/1": "bottle", "cable/good/1": "cable"},
    "folders inside a class": {"cat/1": "cat", "cat/more/2": "cat", "dog/1": "dog"},
    "COCO": {"images/train2017/1": "train", "images/val2017/1": "validation"},
    "a class named train": {"train/1": "train", "truck/1": "truck"},
    "beside the splits": {"train/1": "train", "val/1": "validation", "all/1": "outside", "2": "outside"},
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_layouts(case):
    assert laid_out(*LAYOUTS[case]) == LAYOUTS[case]


@pytest.mark.parametrize("paths", [("val/a/1", "test/a/1"), ("val/1", "a/1"), ("test/1", "2")])
def test_held_out_images_without_training_images_are_refused(paths):
    with pytest.raises(DataError, match=r"set: has (val|test)/, but no train/ beside it"):
        laid_out(*paths)


@pytest.mark.parametrize("paths", [("cat/1", "dog/1", "3"), ("train/cat/1", "train/dog/1", "train/3", "val/cat/1")])
def test_images_without_a_class_beside_classes_are_refused(paths):
    with pytest.raises(DataError, match=r"1 images such as .*3 have no class, .*\(cat, dog\).*--no-classes"):
        laid_out(*paths)
