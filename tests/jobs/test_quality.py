"""`python -m jobs.quality`: what it compares, with which features, and how it says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from datasets.loading.build import evaluation_batches
from jobs import quality
from jobs.config.loading import load_config
from jobs.errors import ConfigError
from jobs.run.reports import subject_of
from jobs.run.training import train_rank
from tests.datasets.conditions.captioned_sets import caption
from tests.jobs.test_prompts import TEXT, train
from trainer.checkpoints.export import load
from trainer.errors import TrainingError
from trainer.images import visible
from trainer.noise import Noise
from trainer.prompts import encode
from trainer.training.sample_quality import compare


@pytest.fixture
def run(config_file) -> str:
    """A finished tiny run."""
    config = load_config(str(config_file()))
    train_rank(config)
    return config.run


def rows(images: torch.Tensor) -> torch.Tensor:
    """A user's features: the mean of each row."""
    assert images.dtype == torch.uint8
    return images.double().mean((1, 3))


def report(run: str, name: str) -> dict:
    (path,) = (Path(run) / "evaluations").glob(f"{name}.json")
    return json.loads(path.read_text())


def test_the_distance_uses_the_given_feature_function(run, capsys):
    features = "tests.jobs.test_quality:rows"
    assert quality.main([run, "--features", features, "--count", "50", "--batch", "20", "--seed", "3"]) == 0
    found = report(run, "quality-validation-tests.jobs.test_quality-rows-50-ema-1280-seed3")
    subject = subject_of(run)
    with evaluation_batches(subject.config.data, subject.index("validation"), batch=90) as batches:
        real = torch.cat([batch.images[batch.weights > 0] for batch in batches])
    with torch.no_grad():
        samples = load(run).sample(Noise(3, "sample", torch.arange(50)))
    expected = compare(rows(visible(samples, 17)), rows(visible(real, 17)))
    assert found["figures"] == pytest.approx({f"quality/{k}": v for k, v in expected._asdict().items()}, rel=1e-6)
    assert (found["samples"], found["images"], found["numbers"]) == (50, 270, 8)
    said = capsys.readouterr().out
    assert "8 features of tests.jobs.test_quality:rows" in said
    assert (
        "50 samples, averaged (EMA) weights after 1,280 images, fp32, seed 3, unconditional, decode sample, and" in said
    )
    assert "and 270 images of validation" in said
    assert "FID" not in said


def test_processes_change_nothing_and_other_splits_can_be_named(run, digits):
    for processes in ("1", "2"):
        quality.main([run, "--split", f"{digits}/train", "--count", "90", "--batch", "10", "--processes", processes])
        found = report(run, "quality-train-*-pixels-90-ema-1280")
        assert found["images"] == 1527
        if processes == "1":
            alone = found["figures"]
    assert found["figures"] == alone


def test_each_comparison_has_a_file_of_its_own(run):
    options = [[], ["--seed", "5"], ["--temperature", "0.5"], ["--weights", "raw"], ["--precision", "bf16"]]
    for more in options:
        quality.main([run, "--count", "20", "--processes", "1", *more])
    reports = [json.loads(path.read_text()) for path in (Path(run) / "evaluations").iterdir()]
    assert len(reports) == len(options)
    assert {(found["seed"], found["temperature"]) for found in reports} == {(0, 1.0), (5, 1.0), (0, 0.5)}
    assert all(found["sampling"] == {"decode": "sample"} for found in reports)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["--features", "nowhere:f"], TrainingError, "features nowhere:f: no such function"),
        (["--count", "0"], ConfigError, "--count 0: at least 1"),
        (["--guidance", "2"], ConfigError, "--guidance: a Vae has no such option"),
        (["--weights", "worst"], TrainingError, "weights worst: are ema, best, raw, or posthoc:WIDTH"),
    ],
)
def test_invalid_options_are_errors_of_one_line(run, arguments, error, message):
    with pytest.raises(error, match=message):
        quality.main([run, *arguments])


@pytest.fixture(scope="module")
def captioned(tmp_path_factory) -> str:
    return train(tmp_path_factory.mktemp("captioned"), {"caption": TEXT})


def test_samples_with_the_captions_of_the_images(captioned):
    folder = Path(captioned).parent / "set"
    options = ["--split", str(folder), "--count", "70", "--batch", "16", "--condition", "given", "--guidance", "2"]
    features = ["--features", "tests.jobs.test_quality:rows"]
    quality.main([captioned, *options, *features, "--processes", "1"])
    found = report(captioned, "quality-*-70-*given*")
    assert found["conditions"] == {"caption": "given"}
    model = load(captioned)
    captions = [caption(i % 64) for i in range(70)]  # the set has 64 images
    tokens = encode(model, [{"caption": text} for text in captions]).tokens
    with torch.no_grad():
        samples = model.sample(Noise(0, "sample", torch.arange(70)), condition=tokens, guidance=2.0)
    subject = subject_of(captioned)
    index = subject.index(str(folder))
    with evaluation_batches(subject.config.data, index, batch=64, tokenizers=model.tokenizers) as batches:
        real = torch.cat([batch.images[batch.weights > 0] for batch in batches])
    levels = model.spec.levels
    expected = compare(rows(visible(samples, levels)), rows(visible(real, levels)))
    assert found["figures"] == pytest.approx({f"quality/{k}": v for k, v in expected._asdict().items()}, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("run", [], "is not conditioned on what validation has"),
        ("captioned", ["--label", "3"], "--label: cannot be used with --condition given"),
    ],
)
def test_conditions_that_there_are_not(name, more, message, request):
    run = request.getfixturevalue(name)
    split = [] if name == "run" else ["--split", str(Path(run).parent / "set")]
    with pytest.raises(ConfigError, match=message):
        quality.main([run, "--condition", "given", *split, *more])
