"""A model by itself: `load(url)` of a finished run, of one on its way, of an export; every error is one line."""

import json
import logging
import resource
import socket
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter

from cluster.storage.errors import StorageError
from cluster.storage.storage import Storage
from tests.trainer.models import ALL_MODELS, batch, build
from trainer.checkpoints.checkpointer import Checkpointer
from trainer.checkpoints.commit import Commit
from trainer.checkpoints.export import FINAL, describe, load, load_untrained, open_model, write_model
from trainer.checkpoints.lineage import Lineage
from trainer.checkpoints.retention import CheckpointConfig
from trainer.errors import TrainingError
from trainer.models import ModelConfig
from trainer.models.latent import LatentConfig
from trainer.models.vae import VaeConfig
from trainer.noise import Noise
from trainer.training.ema import Ema

SPEC, VALUES = ALL_MODELS["vae-mlp"]
CONFIG = VaeConfig.model_validate(VALUES)


@pytest.fixture
def url(tmp_path):
    return str(tmp_path / "run")


def commit(url, *images):
    """A run with commits; the weights say after how many images, the averages are their negatives."""
    run = Storage(url)
    run.write("model.json", json.dumps(describe(CONFIG, build("vae-mlp"))).encode())
    checkpoints = Checkpointer(url, CheckpointConfig(keep=9), print)
    checkpoints.claim(lambda sections: None)
    model = build("vae-mlp")
    for count in images:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(count)
        ema = Ema(model, 10)
        for value in ema.average.values():
            value.neg_()
        state = {"model": model.state_dict(), "ema": ema.state_dict(), "progress": {"images": count}}
        checkpoints.save(count, state, [])


def values(model):
    return {round(value) for parameter in model.parameters() for value in parameter.unique().tolist()}


def finish(folder, name="vae-mlp", seed=0):
    model = build(name, seed)
    _, config = ALL_MODELS[name]
    description = describe(TypeAdapter(ModelConfig).validate_python(config), model)
    write_model(Storage(folder), description | {"images_seen": 3}, model.state_dict(), {})
    return model


@pytest.mark.parametrize("name", ALL_MODELS)
def test_every_model_comes_back_to_the_bit(url, name):
    model = finish(url, name, seed=3).eval()
    back = load(url)
    assert type(back) is type(model)
    assert back.spec == model.spec
    assert not any(module.training for module in back.modules())
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in back.state_dict().items())
    images, progress = batch(model.spec, 2), torch.tensor(10.0)
    noise = Noise(0, "evaluate", torch.arange(2))
    with torch.no_grad():
        condition = {"label": torch.zeros(2, dtype=torch.int64)} if model.spec.classes else None
        one, other = (m(images, condition, noise, progress).negative_bound for m in (model, back))
    assert torch.equal(one, other)


def finish_run(url, number, recorded=True):
    """Write final/ of the run: its weights are those of no commit. Returns them."""
    model = finish(f"{url}/{FINAL}", seed=7)
    facts = json.loads(Storage(url).read(f"{FINAL}/config.json"))
    facts |= {"images_seen": number.images} | ({"commit": number.name} if recorded else {})
    Storage(url).write(f"{FINAL}/config.json", json.dumps(facts).encode())
    return model.state_dict()


@pytest.mark.parametrize("recorded", [True, False], ids=["this version", "older version"])
def test_a_finished_run_is_loaded_from_its_final_folder(url, recorded):
    commit(url, 1, 2)
    weights = finish_run(url, Commit(2, 1), recorded)
    Lineage(Storage(url)).claim(Commit(2, 1))  # extended, but not trained further yet
    loaded = open_model(url)
    assert loaded.images == 2
    assert all(torch.equal(value, weights[key]) for key, value in loaded.model.state_dict().items())
    assert values(load(url, "raw")) == {2}


@pytest.mark.parametrize("recorded", [True, False], ids=["this version", "older version"])
def test_of_an_extended_run_the_newest_commit_is_loaded(url, recorded):
    commit(url, 1, 2)
    finish_run(url, Commit(2, 1), recorded)
    commit(url, 3)
    loaded = open_model(url)
    assert (loaded.images, loaded.weights, values(loaded.model)) == (3, "ema", {-3})
    assert open_model(url, "raw").images == 3


@pytest.mark.parametrize("recorded", [True, False], ids=["this version", "older version"])
def test_the_final_weights_of_a_branch_left_behind_are_not_loaded(url, recorded):
    commit(url, 1, 3)
    finish_run(url, Commit(3, 1), recorded)
    Lineage(Storage(url)).claim(Commit(1, 1))
    loaded = open_model(url)
    assert (loaded.images, values(loaded.model)) == (1, {-1})


def test_final_weights_without_any_checkpoint_left_are_loaded(url):
    commit(url, 1)
    weights = finish_run(url, Commit(1, 1))
    for entry in list(Storage(url).list("checkpoints")):
        Storage(url).delete(entry.path)
    assert all(torch.equal(value, weights[key]) for key, value in load(url).state_dict().items())


def test_a_run_on_its_way_is_loaded_from_its_newest_commit(url):
    commit(url, 1, 2)
    assert values(load(url)) == {-2}
    assert values(load(url, "ema")) == {-2}
    assert values(load(url, "raw")) == {2}


def test_the_newest_commit_is_that_of_the_newest_lineage(url):
    commit(url, 1, 2)
    Lineage(Storage(url)).claim(Commit(1, 1))
    assert values(load(url)) == {-1}


def test_a_model_comes_with_its_weights_and_images(url):
    commit(url, 1, 3)
    assert open_model(url)[1:] == ("ema", 3)
    assert open_model(url, "raw")[1:] == ("raw", 3)
    finish(f"{url}/{FINAL}")
    assert open_model(url)[1:] == ("ema", 3)
    run = Storage(f"{url}/{FINAL}")
    run.write("config.json", json.dumps(json.loads(run.read("config.json")) | {"weights": "raw"}).encode())
    assert open_model(run.url)[1:] == ("raw", 3)  # an export knows which weights it has


def test_an_export_is_loaded_from_a_store(s3_environment):
    url = f"{s3_environment.bucket('export')}/model"
    model = finish(url)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in load(url).state_dict().items())


def test_a_damaged_commit_is_passed_over_and_said(url, caplog):
    commit(url, 1, 2)
    run, path = Storage(url), f"checkpoints/{Commit(2, 1).name}/model.safetensors"
    run.write(path, run.read(path)[:-1])
    with caplog.at_level(logging.WARNING, "trainer.checkpoints.export"):
        assert values(load(url)) == {-1}
    assert f"{path}: its content is not what the manifest says; taking the checkpoint before" in caplog.text


def test_only_what_is_needed_is_read(url, monkeypatch):
    commit(url, 1)
    read = []
    original = Storage.read
    monkeypatch.setattr(Storage, "read", lambda self, path, *most: (read.append(path), original(self, path, *most))[1])
    load(url, "raw")
    assert not any("ema" in path or "optimizer" in path for path in read)


def error_of(url, weights="ema"):
    with pytest.raises((TrainingError, StorageError)) as raised:
        load(url, weights)
    message = str(raised.value)
    assert "\n" not in message
    assert len(message) < 600
    assert url in message
    return message


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_a_folder_without_a_model_is_told(url, weights):
    assert error_of(url, weights) == f"{url}: no model here; a run's folder has checkpoints"
    Storage(url).write("other.txt", b"")
    assert "no model here" in error_of(url, weights)


def test_a_run_with_nothing_but_damaged_commits_is_told(url):
    commit(url, 1, 2)
    run = Storage(url)
    for images in (1, 2):
        run.delete(f"checkpoints/{Commit(images, 1).name}/ema.safetensors")
    assert "ema.safetensors is missing" in error_of(url)
    assert values(load(url, "raw")) == {2}


def test_a_run_without_its_description_is_told(url):
    commit(url, 1)
    Storage(url).delete("model.json")
    assert "model.json" in error_of(url)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda facts: facts["model"].update(kind="gan"), "model: "),
        (lambda facts: facts["model"].update(latents=3), "latents: Extra inputs"),
        (lambda facts: facts["model"].update(latent="many"), "Input should be a valid integer"),
        (lambda facts: facts["model"].update(latent=5), "size mismatch"),
        (lambda facts: facts["images"].update(height=9), "size mismatch"),
        (lambda facts: facts["images"].update(depth=9), "depth"),
        (lambda facts: facts.pop("images"), "images"),
        (lambda facts: facts.pop("model"), "model"),
    ],
)
def test_a_description_that_this_version_cannot_build_is_told(url, change, reason):
    finish(url)
    folder = Storage(url)
    facts = json.loads(folder.read("config.json"))
    change(facts)
    folder.write("config.json", json.dumps(facts).encode())
    message = error_of(url)
    assert "its model cannot be built by this version: " in message
    assert reason in message


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"null"])
def test_a_description_that_is_none_is_told(url, content):
    finish(url)
    Storage(url).write("config.json", content)
    assert "its model cannot be built" in error_of(url)


@pytest.mark.parametrize("content", [b"", b"\x80\x04\x95", b"\xff" * 100])
def test_weights_that_are_no_safetensors_are_told(url, content):
    finish(url)
    Storage(url).write("model.safetensors", content)
    assert "model.safetensors: is not a safetensors file" in error_of(url)


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"latent": 1 << 36}},
        {"model": {"hidden": [1 << 18, 1 << 18]}},
        {"model": {"hidden": [8] * 1_000_000}},
        {"images": {"height": 1 << 16, "width": 1 << 16}},
    ],
)
def test_a_model_of_terabytes_is_compared_with_its_weights_before_it_is_built(url, change):
    finish(url)
    path = Path(url) / "config.json"
    described = json.loads(path.read_text())
    path.write_text(json.dumps(described | {key: described[key] | value for key, value in change.items()}))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(TrainingError, match=r"size mismatch|many more tensors|cannot be built"):
        load(url)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # KiB


def test_weights_of_another_size_than_their_header_says_are_not_read(url):
    finish(url)
    with (Path(url) / "model.safetensors").open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(TrainingError, match=r"model\.safetensors: has 1,099,511,627,776 bytes, its header describes"):
        load(url)


def test_a_run_whose_description_asks_for_terabytes_is_compared_with_its_checkpoint(url):
    commit(url, 100)
    path = Path(url) / "model.json"
    described = json.loads(path.read_text())
    path.write_text(json.dumps(described | {"model": described["model"] | {"latent": 1 << 36}}))
    with pytest.raises(TrainingError, match="size mismatch"):
        load(url)


def test_loading_opens_no_url_that_a_description_names(tmp_path):
    """The first stage of a latent model is in its folder; `url` says where it came from."""
    denoiser = {"network": {"kind": "mlp", "width": 16, "depth": 1}, "prediction": {"kind": "v"}}
    stage = {"kind": "run", "url": "none", "model": VALUES}
    config = LatentConfig.model_validate({"kind": "latent", "first_stage": stage, "denoiser": denoiser})
    model = config.build(SPEC)
    write_model(Storage(str(tmp_path / "run")), describe(config, model), model.state_dict(), {})
    with socket.create_server(("127.0.0.1", 0)) as server:
        path = tmp_path / "run" / "config.json"
        described = json.loads(path.read_text())
        described["model"]["first_stage"]["url"] = f"http://127.0.0.1:{server.getsockname()[1]}/vae"
        path.write_text(json.dumps(described))
        load(str(tmp_path / "run"))
        load_untrained(str(tmp_path / "run"))
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()
        del described["model"]["first_stage"]["model"]
        path.write_text(json.dumps(described))
        for opened in (load, load_untrained):
            with pytest.raises(TrainingError, match=r"first_stage\.model: is missing"):
                opened(str(tmp_path / "run"))
        with pytest.raises(BlockingIOError):
            server.accept()
