"""A run begins with another's weights: those of a run or an export, averaged or raw; all else begins afresh."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import trainer
from cluster.storage.storage import Storage
from jobs.config.loading import load_config
from jobs.config.resolved import resolve
from jobs.config.resume import fixed_settings
from jobs.config.schema import RunConfig
from jobs.errors import ConfigError
from jobs.export import export
from jobs.run.training import train_rank
from tests.jobs.conftest import BATCH
from tests.jobs.runs import metrics, newest_tensors
from tests.testbed.s3 import S3Server
from tests.testbed.steps import StopAfter
from trainer.errors import TrainingError


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    """The folder of a run that has finished."""
    import yaml

    folder = tmp_path_factory.mktemp("source")
    network = {"kind": "mlp", "hidden": [32]}
    values = {
        "run": str(folder / "run"),
        "model": {"kind": "vae", "latent": 4, "encoder": network, "decoder": network},
        "data": {"shards": str(digits / "train"), "streams": 4},
        "optim": {"lr": 0.002, "schedule": "constant", "ema": 500},
        "trainer": {"images": 20 * BATCH, "batch": BATCH, "threads": 1, "pictures": 0},
        "tracking": {"mode": "off"},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(values))
    train_rank(load_config(str(folder / "run.yaml")))
    return folder / "run"


def begun(config: RunConfig, steps: int) -> Path:
    """The folder of that run, stopped after so many steps."""
    train_rank(config, StopAfter(steps))
    return Path(config.run)


@pytest.mark.parametrize("weights", ["ema", "raw"])
@pytest.mark.parametrize("exported", [False, True])
def test_the_weights_are_the_others_and_nothing_else_is(
    source: Path, tmp_path: Path, config_file: Callable[..., Path], weights: str, exported: bool
) -> None:
    """With a learning rate of nothing the weights stay what they were at the start."""
    url = str(source)
    if exported:
        export(url, str(tmp_path / "exported"), weights)
        url = str(tmp_path / "exported")
    which = [] if exported else [f"init_weights={weights}"]  # an export has one kind, whose name is not asked for
    config = load_config(str(config_file(init_from=url)), ["optim.lr=1e-30", "optim.weight_decay=0", *which])
    tensors = newest_tensors(begun(config, 2))
    for name, value in trainer.load(str(source), weights).named_parameters():
        for section in ("model", "ema"):
            assert tensors[f"{section}/{name}"].allclose(value, rtol=1e-6), (section, name)
    steps = [value for name, value in tensors.items() if name.startswith("optimizer/") and name.endswith("step")]
    assert {float(step) for step in steps} == {2.0}
    assert metrics(config.run)[0]["images"] == 2 * BATCH


def test_it_learns_faster_than_from_nothing_and_goes_on_without_the_other(
    source: Path, tmp_path: Path, config_file: Callable[..., Path]
) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(source, copied)
    warm = load_config(str(config_file("warm", init_from=str(copied))))
    cold = load_config(str(config_file("cold")))
    runs = [begun(config, 4) for config in (warm, cold)]
    first = [metrics(run)[0]["train/bpd"] for run in runs]
    assert first[0] < first[1] - 0.4  # three seeds: 0.66 to 0.86

    shutil.rmtree(copied)  # it was needed once
    assert train_rank(warm).finished
    with pytest.raises(TrainingError, match=r"init_from is '.*copied' in the run and None here"):
        train_rank(load_config(str(tmp_path / "warm.yaml"), ["init_from=null"]))


def test_a_run_in_a_bucket_begins_with_an_export_in_one(
    source: Path, config_file: Callable[..., Path], s3_environment: S3Server
) -> None:
    bucket = s3_environment.bucket("warm")
    export(str(source), f"{bucket}/exported")
    config = load_config(str(config_file(init_from=f"{bucket}/exported")), [f"run={bucket}/run"])
    train_rank(config, StopAfter(2))
    assert metrics(config.run)[0]["train/bpd"] < 4


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"latent": 5}, r"its decoder\.0\.0\.weight is of shape \(32, 4\), this run's of shape \(32, 5\)"),
        ({"encoder": {"kind": "mlp", "hidden": [32, 32]}}, r"its \S+ is not there, this run's of shape .*"),
    ],
)
def test_another_model_is_told_in_one_line(
    source: Path, config_file: Callable[..., Path], model: dict, message: str
) -> None:
    config = load_config(str(config_file(init_from=str(source), model=model)))
    with pytest.raises(TrainingError, match=rf"^init_from: {source}: is another model: {message}; .*must agree$"):
        train_rank(config)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (["init_from=/nowhere"], TrainingError, "/nowhere: no model here"),
        (
            ["init_from=/nowhere", "init_weights=worst"],
            ConfigError,
            "init_weights: weights worst: are ema, best, raw",
        ),
    ],
)
def test_what_is_not_there_is_told_in_one_line(
    config_file: Callable[..., Path], settings: list[str], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as told:
        train_rank(load_config(str(config_file()), settings))
    assert "\n" not in str(told.value)


def test_the_place_is_part_of_the_fingerprint_wherever_it_is_read(
    source: Path, config_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(config_file())

    def fixed(*overrides: str) -> dict[str, object]:
        return fixed_settings(resolve(load_config(path, overrides)).config)

    plain, absolute = fixed(), fixed(f"init_from={source}")
    monkeypatch.chdir(source.parent)
    assert fixed("init_from=run") == absolute != plain
    assert Storage("run").url == str(source)
