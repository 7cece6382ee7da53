"""`python -m jobs.sample`: the same images whoever makes them, nothing made twice, and errors in one line."""

import io
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter

import trainer
from cluster.storage.storage import Storage
from datasets.shards.index import Index
from jobs import index, sample
from jobs.config.loading import load_config
from jobs.errors import ConfigError
from jobs.run.training import train_rank
from tests.trainer.models import ALL_MODELS
from trainer.checkpoints.export import describe, load, write_model
from trainer.errors import TrainingError
from trainer.images import ImageSpec, visible
from trainer.models import ModelConfig
from trainer.models.vae import VaeConfig
from trainer.tracking.captions import caption_of

DIFFUSION = {
    "kind": "diffusion",
    "denoiser": {
        "network": {"kind": "mlp", "width": 16, "depth": 1},
        "conditions": {"label": {"kind": "class"}},
    },
    "sampling": {"steps": 4},
}
DIGITS = ImageSpec(1, 8, 8, 17, classes=10)


def a_run(folder: Path, config=DIFFUSION, spec=DIGITS, class_names: tuple[str, ...] = ()) -> str:
    """The URL of an exported model whose weights are nowhere zero."""
    torch.manual_seed(0)
    config = TypeAdapter(ModelConfig).validate_python(config)
    model = config.build_new(spec, load)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0, 0.2)
    model.class_names = class_names
    write_model(Storage(str(folder)), describe(config, model), model.state_dict(), {})
    return str(folder)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.*"))}


@pytest.mark.parametrize("name", ALL_MODELS)
def test_every_model_can_be_sampled(name, tmp_path):
    spec, config = ALL_MODELS[name]
    run = a_run(tmp_path / "run", config, spec)
    assert sample.main([run, "--count", "4", "--out", f"{tmp_path}/out"]) == 0
    assert Image.open(tmp_path / "out/grid.png").size[0] > 2 * spec.width


def test_diffusion_over_latents_can_be_sampled(tmp_path):
    config = VaeConfig(kind="vae", latent=3).model_dump(mode="json")
    vae = a_run(tmp_path / "vae", config)
    latent = {"kind": "latent", "first_stage": {"kind": "run", "url": vae}, "denoiser": LATENT_DENOISER}
    run = a_run(tmp_path / "run", DIFFUSION | latent)
    assert sample.main([run, "--count", "3", "--sampler", "heun", "--steps", "2", "--out", f"{tmp_path}/out"]) == 0


LATENT_DENOISER = {"network": {"kind": "mlp", "width": 16, "depth": 1}, "prediction": {"kind": "v"}}


def test_workers_and_stops_change_no_image(tmp_path):
    """One process; two of them; and one that was stopped half-way and goes on."""
    run = a_run(tmp_path / "run")
    arguments = ["--count", "30", "--batch", "3", "--format", "images", "--label", "all", "--guidance", "2"]
    sample.main([run, *arguments, "--processes", "1", "--out", f"{tmp_path}/one"])
    expected = files(tmp_path / "one")
    assert len([name for name in expected if name.endswith(".png")]) == 30

    sample.main([run, *arguments, "--processes", "2", "--out", f"{tmp_path}/two"])
    assert files(tmp_path / "two") == expected

    for number in (4, 5, 29):
        (tmp_path / f"one/{number:08d}.png").unlink()
    kept = (tmp_path / "one/00000000.png").stat().st_mtime_ns
    sample.main([run, *arguments, "--out", f"{tmp_path}/one"])
    assert files(tmp_path / "one") == expected
    assert (tmp_path / "one/00000000.png").stat().st_mtime_ns == kept


def test_other_samples_are_not_mixed_into_a_folder(tmp_path):
    run = a_run(tmp_path / "run")
    sample.main([run, "--count", "2", "--out", f"{tmp_path}/out"])
    with pytest.raises(ConfigError, match=r"holds samples with seed 0, not 1; give --out another folder"):
        sample.main([run, "--count", "2", "--seed", "1", "--out", f"{tmp_path}/out"])


def test_shards_can_be_trained_on(tmp_path):
    run, out = a_run(tmp_path / "run"), f"{tmp_path}/out"
    sample.main([run, "--count", "25", "--format", "shards", "--shard-images", "10", "--label", "3,4", "--out", out])
    assert index.main([out, "--levels", "17"]) == 0
    found = Index.open(out)
    assert (found.images, len(found)) == (25, 3)
    assert (found.meta.levels, found.meta.height, found.meta.channels) == (17, 8, 1)


def test_trajectories_end_in_the_samples(tmp_path):
    run = a_run(tmp_path / "run")
    sample.main([run, "--count", "2", "--steps", "5", "--trajectory", "strip", "--out", f"{tmp_path}/a"])
    sample.main([run, "--count", "2", "--steps", "5", "--trajectory", "gif", "--out", f"{tmp_path}/a"])
    sample.main([run, "--count", "2", "--steps", "5", "--out", f"{tmp_path}/a"])
    strip, made = (np.asarray(Image.open(tmp_path / f"a/{name}.png")) for name in ("trajectory", "grid"))
    side = (made.shape[1] - 2) // 2
    for row in range(2):
        last = strip[2 + row * side : (row + 1) * side, 2 + 5 * side : 6 * side]
        assert np.array_equal(last, made[2:side, 2 + row * side : (row + 1) * side])
    assert Image.open(tmp_path / "a/trajectory.gif").n_frames > 1


@pytest.mark.parametrize("kind", ["vae", "diffusion"])
def test_interpolations_begin_and_end_in_samples(kind, tmp_path):
    config = DIFFUSION if kind == "diffusion" else VaeConfig(kind="vae", latent=4).model_dump(mode="json")
    run = a_run(tmp_path / "run", config)
    sample.main([run, "--count", "1", "--interpolate", "--out", f"{tmp_path}/a"])
    means = [] if kind == "diffusion" else ["--decode", "mean"]
    sample.main([run, "--count", "2", *means, "--out", f"{tmp_path}/a"])
    way, made = (np.asarray(Image.open(tmp_path / f"a/{name}.png")) for name in ("interpolation", "grid"))
    side = (made.shape[1] - 2) // 2
    assert np.array_equal(way[:, 2:side], made[:, 2:side])
    for file, options in (("grid", ["2", *means]), ("interpolation", ["1", "--interpolate"])):
        with pytest.raises(ConfigError, match=r"\.json: holds samples with seed 0, not 1; give --out another folder"):
            sample.main([run, "--seed", "1", "--out", f"{tmp_path}/a", "--count", *options])
        caption = caption_of((tmp_path / f"a/{file}.png").read_bytes())
        assert caption.startswith("samples, unconditional" + (", means of p(x | z)" if means else ""))
    difference = way[:, 2 + 11 * side :].astype(int) - made[:, 2 + side :]
    assert (difference != 0).mean() < 0.02  # cos(pi / 2) is not quite zero


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--label", "12"], "--label 12: the model knows numbers from 0 to 9"),
        (["--label", "cat"], "--label cat: the model knows numbers from 0 to 9"),
        (["--guidance", "2"], "--guidance: needs a condition to guide to, such as a label"),
        (["--guidance-to", "0"], "--guidance-to 0: Input should be greater than 0"),
        (
            ["--label", "1", "--guidance-from", "2", "--guidance-to", "1.5"],
            "--guidance-to: 1.5 is not above guidance_from, 2",
        ),
        (["--steps", "0"], "--steps 0: Input should be greater than 0"),
        (["--sampler", "best"], "--sampler best: Input should be 'ancestral', 'ddim', 'dpm_solver' or 'heun'"),
        (["--count", "0"], "--count 0: at least 1"),
    ],
)
def test_invalid_options_are_errors_of_one_line(arguments, message, tmp_path):
    with pytest.raises(ConfigError) as refused:
        sample.main([a_run(tmp_path / "run"), "--out", f"{tmp_path}/out", *arguments])
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_options_that_the_model_lacks_are_errors(tmp_path):
    run = a_run(tmp_path / "run", VaeConfig(kind="vae", latent=4).model_dump(mode="json"))
    with pytest.raises(ConfigError, match=f"^--label 3: {run} is not conditioned on labels$"):
        sample.main([run, "--out", f"{tmp_path}/out", "--label", "3"])
    with pytest.raises(TrainingError, match=r"^a Vae samples in one step and has no trajectory$"):
        sample.main([run, "--out", f"{tmp_path}/out", "--trajectory", "strip"])
    with pytest.raises(ConfigError, match="--sampler: a Vae has no such option"):
        sample.main([run, "--out", f"{tmp_path}/out", "--sampler", "ddim"])


ANIMALS = ("cat", "dog", "salt, pepper", "1", "twin", "twin", "12", "0", "all", "owl")


@pytest.mark.parametrize(
    ("given", "number"),
    [
        *(("cat", "0"), ("dog,owl,cat", "1,9,0"), ("salt, pepper", "2"), ("name:salt, pepper", "2"), ("12", "6")),
        *(("name:1", "3"), ("number:1", "1"), ("2", "2"), ("name:all", "8"), ("all", "0,1,2,3,4,5,6,7,8,9")),
    ],
)
def test_classes_are_given_by_name(given, number, tmp_path):
    named = a_run(tmp_path / "named", class_names=ANIMALS)
    numbered = a_run(tmp_path / "numbered")
    arguments = ["--count", "3", "--format", "images", "--processes", "1"]
    for label in [given] if "," in given or "all" in given else [given, f"{given},{given}"]:
        for folder in ("named", "numbered"):
            shutil.rmtree(tmp_path / f"out-{folder}", ignore_errors=True)
        sample.main([named, *arguments, "--label", label, "--out", f"{tmp_path}/out-named"])
        plain = ",".join([number] * (label.count(",") + 1)) if label != given else number
        sample.main([numbered, *arguments, "--label", plain, "--out", f"{tmp_path}/out-numbered"])
        pictures = [
            {k: v for k, v in files(tmp_path / f"out-{f}").items() if k != "sampling.json"}
            for f in ("named", "numbered")
        ]
        assert pictures[0] == pictures[1]


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("1", "--label 1: class number 3 is called 1; write name:1 for it, or number:1 for class number 1"),
        ("twin", "--label twin: classes 4 and 5 are both called twin; give a number"),
        ("cow", "--label cow: the model knows numbers from 0 to 9, or names: cat, dog, "),
        ("cat,cow", "--label cat,cow: cow: the model knows numbers from 0 to 9"),
        ("number:10", "--label number:10: 10: the model knows numbers from 0 to 9"),
    ],
)
def test_classes_that_are_unknown_or_ambiguous_are_errors(label, message, tmp_path):
    run = a_run(tmp_path / "run", class_names=ANIMALS)
    with pytest.raises(ConfigError) as refused:
        sample.main([run, "--out", f"{tmp_path}/out", "--label", label])
    assert str(refused.value).startswith(message)
    assert not (tmp_path / "out").exists()


def test_python_makes_the_samples_of_the_command(tmp_path):
    run = a_run(tmp_path / "run", class_names=ANIMALS)
    arguments = ["--count", "5", "--batch", "3", "--seed", "7", "--label", "dog,owl", "--guidance", "2", "--steps", "3"]
    sample.main([run, *arguments, "--format", "images", "--processes", "1", "--out", f"{tmp_path}/out"])
    model = trainer.load(run)
    made = trainer.sample(model, 5, label=["dog", 9], seed=7, guidance=2.0, steps=3, batch=2)
    assert (made.shape, made.dtype) == ((5, 1, 8, 8), torch.uint8)
    for i, image in enumerate(visible(made, 17)):
        assert np.array_equal(np.asarray(Image.open(tmp_path / f"out/{i:08d}.png")), image[0].numpy())
    assert not made.equal(trainer.sample(model, 5, label="cat", seed=7, guidance=2.0, steps=3))
    assert trainer.sample(model, 0).shape == (0, 1, 8, 8)


def test_what_python_cannot_sample_is_an_error(tmp_path):
    conditional = trainer.load(a_run(tmp_path / "diffusion", class_names=ANIMALS))
    vae = trainer.load(a_run(tmp_path / "vae", VaeConfig(kind="vae", latent=4).model_dump(mode="json")))
    for label in ("cow", 10, -1):
        with pytest.raises(ValueError, match=f"^label: {label}: the model knows numbers from 0 to 9, or names: cat, "):
            trainer.sample(conditional, 1, label=label)
    with pytest.raises(ValueError, match=r"^label: the model is not conditioned on labels$"):
        trainer.sample(vae, 1, label=3)
    with pytest.raises(ValueError, match=r"^steps: a Vae has no such option$"):
        trainer.sample(vae, 1, steps=3)


@pytest.mark.parametrize("channels", [2, 4, 6])
def test_images_of_any_number_of_channels_are_trained_on_drawn_and_sampled(channels, config_file, tmp_path):
    train, held_out = tmp_path / "train", tmp_path / "held_out"
    for folder, count in ((train, 64), (held_out, 16)):
        folder.mkdir()
        with tarfile.open(folder / "0.tar", "w") as tar:
            for i in range(count):
                stream = io.BytesIO()
                np.save(stream, np.random.default_rng(i).integers(0, 17, (6, 5, channels), dtype=np.uint8))
                member = tarfile.TarInfo(f"{i:03}.npy")
                member.size = len(stream.getvalue())
                tar.addfile(member, io.BytesIO(stream.getvalue()))
        index.main([str(folder), "--levels", "17"])
    data = {"shards": str(train), "validation": str(held_out)}
    config = load_config(str(config_file(data=data, trainer={"images": 64})))
    assert train_rank(config).finished
    with Image.open(f"{config.run}/pictures/samples-{64:012d}.png") as picture:
        assert picture.mode == "L"
    out = str(tmp_path / "out")
    for form in ("grid", "images", "shards"):
        sample.main([config.run, "--count", "3", "--format", form, "--processes", "1", "--out", f"{out}/{form}"])
    with Image.open(f"{out}/images/00000000.png") as picture:
        assert (picture.mode, picture.size) == ("L", (channels * 6 - 1, 6))
    index.main([f"{out}/shards", "--levels", "17"])
    made = Index.open(f"{out}/shards")
    assert (made.images, made.channels, made.height, made.width) == (3, channels, 6, 5)
