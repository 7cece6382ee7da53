"""Held-out images are compared with the training images before a run starts, and again by every evaluation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cluster.storage.storage import Storage
from datasets.errors import DataError
from datasets.shards.index import Index
from datasets.shards.indexing import IndexOptions, index_shards
from jobs.config.loading import load_config
from jobs.config.other_images import shards_in_common
from jobs.config.resolved import resolve
from jobs.errors import ConfigError
from jobs.evaluate import main as evaluate
from jobs.quality import main as quality
from jobs.run.reports import Subject
from jobs.run.training import train_rank
from jobs.submit import checked
from jobs.submit import main as submit
from tests.jobs.images import write_images
from tests.testbed.jobs import fork_job

CONDITIONAL = {
    "kind": "diffusion",
    "denoiser": {
        "network": {"kind": "mlp", "width": 16, "depth": 1},
        "prediction": {"kind": "levels"},
        "conditions": {"label": {"kind": "class"}},
    },
}


@pytest.fixture(autouse=True)
def submitted_from(tmp_path, monkeypatch):
    """`jobs.submit` takes configurations below the folder that is uploaded."""
    monkeypatch.setattr("jobs.submit.ROOT", tmp_path)


def renamed_classes(folder: Path, copy: Path, names: list[str]) -> Path:
    shutil.copytree(folder, copy)
    facts = json.loads((copy / "index/index.json").read_text())
    (copy / "index/index.json").write_text(json.dumps(facts | {"class_names": names}))
    return copy


ODD = {
    "size": ({"shape": (9, 8), "levels": 17}, "size of the images: 9 x 8; of the training images: 8 x 8"),
    "channels": ({"shape": (8, 8, 3), "levels": 17}, "channels of the images: 3; of the training images: 1"),
    "levels": ({"levels": 256}, "levels of the images: 256; of the training images: 17"),
}


@pytest.mark.parametrize("what", ODD)
def test_images_that_the_model_cannot_take_are_refused_before_a_run_starts(config_file, tmp_path, what):
    images, message = ODD[what]
    odd = write_images(tmp_path / "odd", **images)
    path = str(config_file(data={"validation": str(odd)}))
    for start in (lambda: resolve(load_config(path)), lambda: checked(path, [])):
        with pytest.raises(ConfigError, match=f"^{odd}: {message}$"):
            start()
    ended = fork_job("train_local", path)
    assert (ended.status, ended.stderr) == (1, f"error: {odd}: {message}\n")


@pytest.mark.parametrize("what", ODD)
def test_an_evaluation_compares_images_with_the_models(config_file, tmp_path, what):
    images, message = ODD[what]
    odd = write_images(tmp_path / "odd", **images)
    config = load_config(str(config_file(trainer={"images": 64})))
    train_rank(config)
    with pytest.raises(ConfigError, match=message):
        evaluate([config.run, "--split", str(odd)])


@pytest.mark.parametrize(
    ("classes", "message"),
    [(11, "the images have 11 classes, the training images 10"), (0, "the images have no labels; the training images")],
)
def test_labels_that_a_conditional_model_does_not_know_are_refused(config_file, tmp_path, classes, message):
    odd = str(write_images(tmp_path / "odd", classes=classes, levels=17))
    conditional = str(config_file(model=CONDITIONAL, data={"validation": odd}))
    with pytest.raises(ConfigError, match=f"{message}.*; the model is conditioned on the class"):
        train_rank(load_config(conditional))
    with pytest.raises(ConfigError, match=message):
        checked(conditional, [])
    unconditional = resolve(load_config(str(config_file("other", data={"validation": odd}))))
    unconditional.build_model()
    assert message in unconditional.warnings[0]


def test_shifted_class_names_are_refused_for_a_conditional_model(config_file, digits, tmp_path):
    names = [f"class {i}" for i in range(10)]
    training = renamed_classes(digits / "train", tmp_path / "train", names)
    shifted = renamed_classes(digits / "validation", tmp_path / "shifted", [*names[1:], names[0]])
    fewer = renamed_classes(digits / "validation", tmp_path / "fewer", names[:9])
    data = {"shards": str(training), "validation": str(shifted)}
    with pytest.raises(ConfigError, match="shifted: class 0 is 'class 1'; of the training images 'class 0'"):
        checked(str(config_file(model=CONDITIONAL, data=data)), [])
    checked(str(config_file(model=CONDITIONAL, data=data | {"validation": str(fewer)})), [])
    config = load_config(
        str(config_file("c", model=CONDITIONAL, data=data | {"validation": ""}, trainer={"images": 64}))
    )
    train_rank(config)
    with pytest.raises(ConfigError, match="class 0 is 'class 1'"):
        evaluate([config.run, "--split", str(shifted)])


def test_features_of_other_levels_are_not_compared_with_the_models(config_file, tmp_path):
    config = load_config(str(config_file(trainer={"images": 64})))
    train_rank(config)
    odd = str(write_images(tmp_path / "odd", levels=256))
    with pytest.raises(ConfigError, match="levels of the images: 256"):
        quality([config.run, "--split", odd, "--processes", "1"])


def test_validation_on_training_images_is_named(config_file, digits, tmp_path, capsys):
    training = str(digits / "train")
    path = config_file(data={"validation": training}, trainer={"images": 64})
    train_rank(load_config(str(path)))
    line = f"warning: {training}: all 8 shards are also training shards"
    assert line in capsys.readouterr().out
    assert submit([str(path), "--dry-run"]) == 0
    assert line in capsys.readouterr().err
    evaluate([load_config(str(path)).run])
    assert line in capsys.readouterr().out

    part = tmp_path / "part"
    shutil.copytree(digits / "validation", part, ignore=shutil.ignore_patterns("index"))
    shutil.copy(digits / "train/000003.tar", part / "renamed.tar")
    index_shards(str(part), str(part / "index"), IndexOptions(levels=17))
    resolved = resolve(load_config(str(config_file(data={"validation": str(part)}))))
    assert [warning for warning in resolved.warnings if f"{part}: 1 of 9 shards are also" in warning]
    assert shards_in_common(Index.open(training), Index.open(str(digits / "validation"))) == 0
    assert resolve(load_config(str(config_file()))).warnings == []


def test_indexes_may_all_be_elsewhere_than_beside_their_shards(config_file, digits, tmp_path):
    """As for a bucket that is read-only."""
    for split in ("train", "validation"):
        shutil.copytree(digits / split, tmp_path / split, ignore=shutil.ignore_patterns("index"))
    held_out, index = str(tmp_path / "validation"), str(digits / "validation/index")
    data = {"shards": str(tmp_path / "train"), "index": str(digits / "train/index")}
    with pytest.raises(DataError, match=f"{held_out}: no index of the shards"):
        resolve(load_config(str(config_file(data=data | {"validation": held_out}))))
    data |= {"validation": held_out, "validation_index": index}
    config = load_config(str(config_file(data=data, trainer={"images": 64})))
    train_rank(config)
    evaluate([config.run])
    evaluate([config.run, "--split", held_out, "--index", index])
    reports = [json.loads(path.read_text()) for path in (Path(config.run) / "evaluations").glob("*.json")]
    assert [report["images"] for report in reports] == [270, 270]
    with pytest.raises(ConfigError, match=r"--index .*: goes with --split URL"):
        evaluate([config.run, "--index", index])
    lists = {"shards": [data["shards"], held_out], "index": [data["index"], index]}
    both = load_config(str(config_file("both", data=data | lists)))
    assert resolve(both).index.images == 1527 + 270


def test_the_training_split_is_what_the_run_reads(config_file, digits, tmp_path):
    """An index elsewhere than beside its shards, and every set of a mixture."""
    bare = tmp_path / "bare"
    shutil.copytree(digits / "train", bare, ignore=shutil.ignore_patterns("index"))
    data = {"shards": str(bare), "index": str(digits / "train/index")}
    config = load_config(str(config_file(data=data, trainer={"images": 64})))
    assert Subject(Storage(config.run), config, True).index("train").images == 1527
    with pytest.raises(DataError):
        Index.open(str(bare))
    mixture = [{"shards": str(digits / split), "weight": 1} for split in ("train", "validation")]
    mixed = load_config(str(config_file("mixed", data={"shards": "", "mixture": mixture}, trainer={"images": 64})))
    assert Subject(Storage(mixed.run), mixed, True).index("train").images == 1527 + 270
    train_rank(mixed)
    evaluate([mixed.run, "--split", "train"])
    report = json.loads((Path(mixed.run) / "evaluations/train-elbo-1-ema-64.json").read_text())
    assert report["images"] == 1797


def test_a_mixture_of_labelled_and_unlabelled_sets_is_for_models_without_labels(config_file, digits, tmp_path):
    plain = write_images(tmp_path / "plain", levels=17)
    mixture = [{"shards": str(digits / "train"), "weight": 1}, {"shards": str(plain), "weight": 1}]
    data = {"shards": "", "mixture": mixture, "validation": str(digits / "validation")}
    config = load_config(str(config_file(data=data, trainer={"images": 128})))
    assert train_rank(config).finished
    evaluate([config.run])
    conditional = str(config_file("conditional", model=CONDITIONAL, data=data))
    message = rf"{digits}/train has labels and {plain} has none"
    with pytest.raises(ConfigError, match=rf"label: nothing in the data feeds this condition; {message}"):
        train_rank(load_config(conditional))
