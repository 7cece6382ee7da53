"""What jobs.submit finds out before it sends anything. The road to a real cluster: tests/cluster/test_local.py."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from cluster.storage.errors import StorageError
from cluster.storage.storage import Storage
from datasets.errors import DataError
from jobs.config.loading import load_config
from jobs.config.resolved import resolve
from jobs.errors import ConfigError
from jobs.ray.submissions import ROOT
from jobs.run.training import train_rank
from jobs.submit import check_run_folder, checked, main
from tests.jobs.conftest import BATCH
from tests.testbed.jobs import call_job, run_job
from tests.testbed.processes import REPOSITORY, free_ports
from trainer.errors import TrainingError

CONFIG = str(REPOSITORY / "jobs" / "configs" / "digits-vae.yaml")


@pytest.fixture
def overrides(digits: Path, tmp_path: Path) -> list[str]:
    """What makes the default configuration a run on the packed digits."""
    return [f"run={tmp_path}/run", f"data.shards={digits}/train", f"data.validation={digits}/validation"]


def test_a_run_that_can_begin_passes_and_reads_the_same_on_the_cluster(overrides: list[str]) -> None:
    run, sent = checked(CONFIG, [*overrides, "optim.lr=1e-4"])
    assert resolve(load_config(CONFIG, sent)).config == run.config


def test_relative_paths_are_sent_as_absolute_ones(
    overrides: list[str], digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(digits)
    relative = ["run=runs/a b", "data.shards=train", "data.validation=validation"]
    run, sent = checked(CONFIG, relative)
    monkeypatch.chdir("/")
    assert resolve(load_config(CONFIG, sent)).config == run.config
    assert run.config.run == f"{digits}/runs/a b"


def test_several_sets_are_sent_with_absolute_paths(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(digits)
    path = REPOSITORY / "jobs" / "configs" / "digits-vae.yaml"
    mixture = "[{shards: train, weight: 2}, {shards: [validation]}]"
    run, sent = checked(str(path), ['data.shards=""', f"data.mixture={mixture}", "data.validation=validation"])
    monkeypatch.chdir("/")
    assert resolve(load_config(str(path), sent)).config == run.config
    assert run.config.data.mixture[1].shards == (f"{digits}/validation",)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ("data.shards=/nowhere", DataError, "/nowhere: no such folder"),
        ("data.validation=/nowhere", DataError, "/nowhere: no such folder"),
        ("optim.lrate=1", ConfigError, "unknown key; did you mean"),
        ("data.streams=7", DataError, "data.streams=7 must divide the global batch"),
        ("ray.workers=65", DataError, "data.streams=64 cannot be dealt to 65 ranks"),
        ("ray.workers=[1,65]", DataError, "data.streams=64 cannot be dealt to 65 ranks"),
        ("run=s3://", StorageError, "no bucket"),
        ("run=s3://me:hunter2@bucket/run", ConfigError, "s3://...@bucket/run: contains a user name or password"),
        ("init_from=/nowhere", TrainingError, "/nowhere: no model here"),
        ("model.likelihood={kind: bernoulli}", ConfigError, r"^model\."),
    ],
)
def test_what_cannot_begin_is_found_before_anything_is_sent(
    overrides: list[str], wrong: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message) if not message.startswith("^") else message) as raised:
        checked(CONFIG, [*overrides, wrong])
    assert "hunter2" not in str(raised.value)


def test_a_configuration_that_would_not_be_sent_is_refused(config_file: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match=f"is outside {ROOT}, which is uploaded to the cluster"):
        checked(str(config_file()), [])


def test_the_folder_of_a_run_is_tried_and_left_as_it_was(overrides: list[str], tmp_path: Path) -> None:
    run, _ = checked(CONFIG, overrides)
    check_run_folder(run)
    assert list(Storage(run.config.run).list()) == []


def test_a_folder_that_cannot_be_written_is_refused(overrides: list[str], tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(StorageError, match="a file, not a folder"):
        check_run_folder(checked(CONFIG, overrides)[0])


def test_another_runs_folder_is_refused_and_the_same_runs_is_not(overrides: list[str]) -> None:
    short = [*overrides, f"trainer.images={2 * BATCH}", f"trainer.batch={BATCH}", "tracking.mode=off"]
    run, _ = checked(CONFIG, short)
    train_rank(run.config)
    check_run_folder(checked(CONFIG, [*short, "optim.lr=0.5", "ray.workers=2"])[0])
    with pytest.raises(ConfigError, match="seed is 0 in the run and 1 here"):
        check_run_folder(checked(CONFIG, [*short, "seed=1"])[0])


@pytest.mark.parametrize(
    ("options", "keys"),
    [
        (["--workers", "4"], {"workers": 4}),
        (["--workers", "1-8"], {"workers": (1, 8)}),
        (["--gpus-per-worker", "0"], {"gpus_per_worker": 0}),
    ],
)
def test_the_options_for_workers_are_keys_of_the_configuration(
    options: list[str], keys: dict[str, object], overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[object] = []
    monkeypatch.setattr("jobs.sizing.report.size_report", lambda run, hardware: sizes.append(run.config.ray) or "")
    assert main([CONFIG, "--dry-run", *options, *overrides]) == 0
    assert {name: getattr(sizes[0], name) for name in keys} == keys


@pytest.mark.parametrize("workers", ["four", "1-", "-2", "1-2-3"])
def test_a_number_of_workers_that_is_none_is_refused(workers: str, overrides: list[str]) -> None:
    with pytest.raises(ConfigError, match="must be a number, as in 4, or a range, as in 1-8"):
        main([CONFIG, f"--workers={workers}", *overrides])


def test_a_dry_run_prints_the_sizes_and_writes_nothing(overrides: list[str], tmp_path: Path) -> None:
    told = call_job("submit", CONFIG, *overrides, "--dry-run", "--address", "http://127.0.0.1:9")
    assert told.status == 0, told.stderr
    assert [line.split()[0] for line in told.stdout.splitlines() if not line.startswith(" ")] == [
        "parameters", "memory", "compute", "images", "steps", "checkpoint", "loader",
    ]  # fmt: skip
    assert list(tmp_path.glob("run*")) == []


def test_a_cluster_that_is_not_there_is_told_in_one_line(overrides: list[str]) -> None:
    address = f"http://127.0.0.1:{free_ports(1)[0]}"
    told = run_job("submit", CONFIG, *overrides, "--address", address, env={"RAY_AUTH_MODE": "disabled"})
    assert told.status == 1
    assert told.stderr == (
        f"error: {address}: no Ray cluster answers; the address must be its dashboard's, http://head:8265\n"
    )


def test_the_value_of_a_secret_is_not_taken_for_its_name_nor_shown(overrides: list[str]) -> None:
    with pytest.raises(ConfigError, match="give the name of a variable, not its value") as raised:
        main([CONFIG, *overrides, "--secret", "0123-the-key-itself"])
    assert "the-key-itself" not in str(raised.value)


def test_a_submission_without_anything_to_do_says_what_there_is() -> None:
    told = call_job("submit")
    assert told.status == 2
    assert told.error.endswith("give a CONFIG, or --list, --logs ID, --stop ID")


def test_what_is_sent_holds_neither_data_nor_runs_nor_keys(tmp_path: Path) -> None:
    import zipfile

    from ray._private.runtime_env.packaging import create_package

    names = [".env", "data", "runs", "wandb", "node.pem"]
    package = tmp_path / "package.zip"
    create_package(str(REPOSITORY), package, include_gitignore=True)
    with zipfile.ZipFile(package) as packed:
        files = packed.namelist()
        size = sum(entry.file_size for entry in packed.infolist())
    assert "jobs/train.py" in files
    assert "jobs/configs/digits-vae.yaml" in files
    assert not [file for file in files if file.split("/")[0] in names or file.endswith((".pem", ".tar"))]
    assert size < 5_000_000


def test_the_environment_of_the_person_is_left_alone() -> None:
    assert "RAY_API_SERVER_ADDRESS" not in os.environ
    assert yaml.safe_load("[1, 8]") == [1, 8]
