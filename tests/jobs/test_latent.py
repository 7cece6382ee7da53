"""A latent model contains its first stage: the VAE's folder is read when its run starts, and never again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import trainer
from cluster.storage.errors import StorageError
from cluster.storage.storage import Storage
from jobs import sample
from jobs.config.loading import load_config
from jobs.config.resolved import resolve
from jobs.export import export
from jobs.run.training import train_rank
from tests.jobs.conftest import BATCH
from tests.jobs.runs import assert_bitwise_equal, newest_tensors
from tests.testbed.steps import train
from trainer.errors import TrainingError

DENOISER = {"network": {"kind": "mlp", "width": 16, "depth": 1}, "prediction": {"kind": "v"}}


@pytest.fixture
def vae(config_file: Callable[..., Path]) -> str:
    """The folder of a trained VAE."""
    config = load_config(str(config_file("vae")))
    train_rank(config)
    return config.run


def latent(config_file: Callable[..., Path], vae: str, name: str = "latent", **sections: object) -> Path:
    return config_file(name, model={"kind": "latent", "vae": vae, "denoiser": DENOISER}, **sections)


def test_without_the_folder_of_its_vae_a_run_is_resumed_loaded_exported_and_sampled(
    config_file: Callable[..., Path], vae: str, tmp_path: Path
) -> None:
    straight, path = (latent(config_file, vae, name) for name in ("straight", "broken"))
    train(straight)
    train(path, 7)
    shutil.rmtree(vae)
    resolve(load_config(str(path))).build_model()  # for its size, say
    train(path)
    run = load_config(str(path)).run
    assert_bitwise_equal(newest_tensors(run), newest_tensors(load_config(str(straight)).run))

    export(run, str(tmp_path / "exported"))
    models = [trainer.load(run, "ema"), trainer.load(run, "raw"), trainer.load(str(tmp_path / "exported"))]
    shutil.rmtree(f"{run}/final")
    models.append(trainer.load(run))
    for model in models:
        first_stage = {name for name in model.state_dict() if name.startswith("vae.")}
        assert first_stage
    ema = models[0].state_dict()
    for other in models[2:]:
        assert all(torch.equal(value, ema[name]) for name, value in other.state_dict().items())
    assert sample.main([str(tmp_path / "exported"), "--count", "3", "--out", f"{tmp_path}/out"]) == 0


def test_only_a_new_run_reads_the_vae(config_file: Callable[..., Path], vae: str) -> None:
    path = latent(config_file, vae)
    shutil.rmtree(vae)
    with pytest.raises((StorageError, TrainingError), match="vae"):
        train(path, 2)


def test_an_older_run_reads_its_vae_when_it_is_resumed_and_contains_it_then(
    config_file: Callable[..., Path], vae: str
) -> None:
    """Loading such a folder opens no URL that it names: it is refused."""
    path = latent(config_file, vae)
    train(path, 7)
    run = Storage(load_config(str(path)).run)
    description = json.loads(run.read("model.json"))
    assert description["model"].pop("first_stage")["kind"] == "vae"
    run.write("model.json", json.dumps(description).encode())
    with pytest.raises(TrainingError, match=r"first_stage: is missing.*resume the run once with this version") as error:
        trainer.load(run.url)
    assert "\n" not in str(error.value)
    train(path, 3)
    shutil.rmtree(vae)
    assert trainer.load(run.url).state_dict().keys() == trainer.load(run.url, "raw").state_dict().keys()


def test_a_run_and_its_exports_record_what_made_them(vae: str, tmp_path: Path) -> None:
    attempt = json.loads(Storage(vae).read("attempts/0001.json"))
    provenance = attempt["facts"]["provenance"]
    assert (provenance["precision"], provenance["world_size"]) == ("fp32", 1)
    final = json.loads(Storage(vae).read("final/config.json"))
    assert final["provenance"] == provenance
    assert final["commit"] == f"{20 * BATCH:012d}-0001"
    export(vae, str(tmp_path / "exported"))
    exported = json.loads((tmp_path / "exported" / "config.json").read_text())
    assert exported["provenance"] == provenance
    assert exported["exported_by"]["versions"]["torch"] == torch.__version__
