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
from jobs.encode import main as encode
from jobs.errors import ConfigError
from jobs.export import export
from jobs.export import main as export_job
from jobs.run.training import train_rank
from tests.jobs.conftest import BATCH
from tests.jobs.runs import assert_bitwise_equal, metrics, newest_tensors
from tests.testbed.ranks import together
from tests.testbed.steps import train
from trainer.errors import TrainingError

DENOISER = {"network": {"kind": "mlp", "width": 16, "depth": 1}, "prediction": {"kind": "v"}}


MAPS = {"kind": "resnet", "channels": [4, 6, 8], "blocks": 1}
FIRST_STAGES = {
    "maps": {"kind": "vae", "latent": {"channels": 2, "downsample": 4}, "encoder": MAPS, "decoder": MAPS},
    "ladder": {"kind": "ladder", "stages": [{"width": 8, "latent": 2, "groups": 2}]},
}


@pytest.fixture
def vae(config_file: Callable[..., Path]) -> str:
    """The folder of a trained VAE."""
    config = load_config(str(config_file("vae")))
    train_rank(config)
    return config.run


def over(url: str) -> dict[str, object]:
    """A diffusion over the latents of the run at `url`."""
    return {"kind": "latent", "first_stage": {"kind": "run", "url": url}, "denoiser": DENOISER}


def latent(config_file: Callable[..., Path], vae: str, name: str = "latent", **settings: object) -> Path:
    return config_file(name, model=over(vae) | settings)


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
        first_stage = {name for name in model.state_dict() if name.startswith("first_stage.")}
        assert first_stage
    ema = models[0].state_dict()
    for other in models[2:]:
        assert all(torch.equal(value, ema[name]) for name, value in other.state_dict().items())
    assert sample.main([str(tmp_path / "exported"), "--count", "3", "--out", f"{tmp_path}/out"]) == 0


@pytest.mark.parametrize("kind", FIRST_STAGES)
def test_latents_are_measured_once_and_only_the_diffusion_is_averaged(
    config_file: Callable[..., Path], tmp_path: Path, kind: str
) -> None:
    first = config_file("first", model=FIRST_STAGES[kind])
    train(first, 2)
    path = latent(config_file, load_config(str(first)).run, measured_images=500)
    train(path, 2)
    shutil.rmtree(load_config(str(first)).run)
    run = load_config(str(path)).run
    before = newest_tensors(run)
    train(path, 2)
    after = newest_tensors(run)
    assert before["model/scale.log_scale"].abs().min() > 0
    for name in ("scale.mean", "scale.log_scale"):
        assert after[f"model/{name}"].equal(before[f"model/{name}"])
    averaged = [name for name in after if name.startswith("ema/")]
    assert averaged
    assert all(name.startswith("ema/diffuser.") for name in averaged)
    model = trainer.load(run)
    assert all(value.equal(after[f"model/{name}"]) for name, value in model.state_dict().items() if "scale" in name)
    assert trainer.sample(model, 3, steps=2).shape == (3, 1, 8, 8)


@pytest.mark.parametrize("kind", ["vector", "maps"])
def test_latents_from_a_column_train_the_same(
    config_file: Callable[..., Path], digits: Path, tmp_path: Path, kind: str
) -> None:
    first = config_file("first", **({"model": FIRST_STAGES[kind]} if kind in FIRST_STAGES else {}))
    train(first, 2)
    url = load_config(str(first)).run
    for split in ("train", "validation"):
        encode([str(digits / split), "--with", f"latents:{url}", "--out", f"{tmp_path}/{split}", "--dtype", "float32"])
    size = {"vector": 4, "maps": 8}[kind]
    names = {"latent_mean": "latent.mean.npy", "latent_log_scale": "latent.log_scale.npy"}
    vectors = {name: {"kind": "vector", "member": member, "size": size} for name, member in names.items()}
    columns = [f"{tmp_path}/train", f"{tmp_path}/validation"]
    rows = {}
    for name, model, data in (
        ("online", {}, {}),
        ("column", {"latents": {}}, {"columns": columns, "conditions": vectors}),
    ):
        path = config_file(name, model=over(url) | {"measured_images": 500} | model, data=data)
        train(path, 12)
        rows[name] = metrics(load_config(str(path)).run)
    figures = [name for name in rows["online"][0] if name.startswith("train/")]
    assert len(figures) > 5
    for online, column in zip(rows["online"], rows["column"], strict=True):
        assert column.keys() == online.keys() | {name for name in column if name.startswith("data/")}
        for name in online:
            assert column[name] == pytest.approx(online[name], rel=1e-4, abs=1e-5), name


def test_latents_that_no_data_feeds_are_refused(config_file: Callable[..., Path], vae: str) -> None:
    path = latent(config_file, vae, latents={})
    with pytest.raises(ConfigError, match=r"model\.latents: data\.conditions\.latent_mean is not there"):
        train(path, 1)


def test_diffusers_opens_an_export_and_draws_the_same_images(
    config_file: Callable[..., Path], vae: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    diffusers = pytest.importorskip("diffusers")
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "cache"))
    path = latent(config_file, vae)
    train(path, 2)
    run, out = load_config(str(path)).run, str(tmp_path / "pipeline")
    export_job([run, "--out", out, "--format", "diffusers"])
    shutil.move(out, f"{tmp_path}/elsewhere")
    pipeline = diffusers.DiffusionPipeline.from_pretrained(f"{tmp_path}/elsewhere", trust_remote_code=True)
    drawn = pipeline(num_images=3, seed=4, num_inference_steps=5, output_type="pt").images
    assert drawn.equal(trainer.sample(trainer.load(run), 3, seed=4, steps=5))
    assert pipeline(num_images=1, num_inference_steps=2).images[0].size == (8, 8)
    with pytest.raises(ConfigError, match="holds a pipeline already"):
        export_job([run, "--out", f"{tmp_path}/elsewhere", "--format", "diffusers"])


def test_two_ranks_with_sharded_weights_train_as_one(config_file: Callable[..., Path]) -> None:
    first = config_file("first", model=FIRST_STAGES["ladder"])
    train(first, 2)
    settings = {"measured_images": 500}
    runs = {}
    for name, sharding, ranks in (("one", "ddp", 1), ("two", "fsdp", 2)):
        model = over(load_config(str(first)).run) | settings
        path = config_file(
            name, model=model, data={"validation": ""}, trainer={"sharding": sharding, "images": 3 * BATCH}
        )
        if ranks == 1:
            train(path)
        else:
            together(ranks, train, path)
        runs[name] = newest_tensors(load_config(str(path)).run)
    assert runs["one"].keys() == runs["two"].keys()
    for name, value in runs["one"].items():
        torch.testing.assert_close(runs["two"][name], value, rtol=5e-3, atol=5e-4)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"kind": "hvae", "latents": [4, 3]}, r"first_stage\.url: .* is a Hvae; a first stage is a vae or a ladder"),
        (
            {"kind": "vae", "latent": 4, "conditions": {"label": {"kind": "class"}}},
            r"first_stage\.url: .* is conditioned on label; a first stage must not be",
        ),
    ],
)
def test_a_model_that_is_no_first_stage_is_refused(
    config_file: Callable[..., Path], model: dict[str, object], message: str
) -> None:
    first = config_file("first", model=model)
    train(first, 1)
    with pytest.raises(ConfigError, match=message):
        train(latent(config_file, load_config(str(first)).run), 1)


def test_only_a_new_run_reads_the_vae(config_file: Callable[..., Path], vae: str) -> None:
    path = latent(config_file, vae)
    shutil.rmtree(vae)
    with pytest.raises((StorageError, TrainingError), match="vae"):
        train(path, 2)


def test_a_run_with_the_key_vae_is_refused_by_name_of_the_version_that_reads_it(
    config_file: Callable[..., Path], vae: str
) -> None:
    path = latent(config_file, vae)
    train(path, 7)
    run = Storage(load_config(str(path)).run)
    description = json.loads(run.read("model.json"))
    description["model"] |= {"vae": vae, "first_stage": description["model"]["first_stage"]["model"]}
    run.write("model.json", json.dumps(description).encode())
    message = r"vae: is now first_stage: .* are read by commit ea2aabe"
    with pytest.raises(TrainingError, match=message) as error:
        trainer.load(run.url)
    assert "\n" not in str(error.value)
    old = config_file("old", model=over(vae) | {"vae": vae})
    with pytest.raises(ConfigError, match=message) as refused:
        load_config(str(old))
    assert "\n" not in str(refused.value)


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
