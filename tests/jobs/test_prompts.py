"""Prompts: samples of a model that was trained on captions, by command and in Python, and what is refused."""

from __future__ import annotations

import io
import json
import re
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import trainer
from datasets.conditions.captions import encoder
from datasets.shards.index import Index
from jobs import index, sample
from jobs.config.loading import load_config
from jobs.config.resolved import resolve
from jobs.errors import ConfigError
from jobs.export import export
from jobs.run.training import train_rank
from tests.datasets.conditions.captioned_sets import members_of, write_captioned
from tests.jobs.test_sample import DIFFUSION, a_run, files
from tests.testbed.processes import REPOSITORY
from trainer.checkpoints.export import load
from trainer.prompts import encode
from trainer.tracking.captions import caption_of

TEXT = {"kind": "text", "max_tokens": 8, "vocabulary": 300}
ENCODER = {"kind": "transformer", "width": 8, "depth": 1, "heads": 2}
A, B, C = "folder heart 8", "lock arrow", "a thin outline"
LONG = "one two three four five six seven"


def train(folder: Path, conditions: dict, **settings) -> str:
    """The URL of a finished run of a few steps of a tiny diffusion model."""
    write_captioned(folder / "set", [40, 24], members_of)
    denoiser = {
        "network": {"kind": "dit", "patch": 2, "width": 16, "depth": 1, "heads": 2},
        "embedding": 8,
        "prediction": {"kind": "v"},
        "conditions": {name: {"kind": "text", "encoder": ENCODER} for name in conditions},
    }
    values = {
        "run": str(folder / "run"),
        "model": {"kind": "diffusion", "denoiser": denoiser, "condition_dropout": 0.2, "sampling": {"steps": 3}},
        "data": {"shards": str(folder / "set"), "streams": 4, "conditions": conditions},
        "optim": {"lr": 0.01, "schedule": "constant", "ema": 10},
        "trainer": {"images": 320, "batch": 16, "threads": 1, "pictures": 0, "evaluate_every": 160} | settings,
        "tracking": {"mode": "off"},
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(values))
    assert train_rank(load_config(path)).finished
    return str(folder / "run")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> str:
    return train(tmp_path_factory.mktemp("text"), {"caption": TEXT}, prompts=[A, LONG])


@pytest.fixture(scope="module")
def two_captions(tmp_path_factory) -> str:
    conditions = {"caption": TEXT, "title": TEXT | {"members": ["json.meta.recaption"]}}
    return train(tmp_path_factory.mktemp("two"), conditions)


def pictures(folder: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(path)) for path in sorted(folder.glob("0*.png"))]


def test_prompts_are_read_as_captions_are(run):
    model = load(run)
    words = model.tokenizers["caption"]
    given = [{"caption": text} for text in (A, "LOCK  arrow", LONG)]
    found = encode(model, given)
    for row, ids, length in zip(given, *found.tokens["caption"], strict=True):
        expected = encoder(words, 8).encode(row["caption"]).ids
        assert ids[:length].tolist() == expected
        assert not ids[length:].any()


def test_an_image_depends_on_seed_prompt_and_number_only(run, tmp_path):
    """Any number of processes, an interruption, more images, and Python: the same images."""
    arguments = [run, "--prompt", A, "--prompt", B, "--format", "images", "--guidance", "10", "--batch", "3"]
    sample.main([*arguments, "--count", "5", "--processes", "1", "--out", f"{tmp_path}/one"])
    expected = files(tmp_path / "one")
    assert len([name for name in expected if name.endswith(".png")]) == 10
    sample.main([*arguments, "--count", "5", "--processes", "2", "--out", f"{tmp_path}/two"])
    assert files(tmp_path / "two") == expected
    (tmp_path / "one/00000005.png").unlink()
    sample.main([*arguments, "--count", "5", "--processes", "1", "--out", f"{tmp_path}/one"])
    assert files(tmp_path / "one") == expected

    made = pictures(tmp_path / "one")
    here = trainer.sample(load(run), 10, prompt=[A, B], guidance=10.0, batch=3)
    assert all(np.array_equal(image[0].numpy(), other) for image, other in zip(here, made, strict=True))
    alone = trainer.sample(load(run), 10, prompt=A, guidance=10.0, batch=10)
    without = trainer.sample(load(run), 10, batch=10)
    for i in range(10):
        distance = np.abs(alone[i, 0].numpy().astype(int) - made[i]).max()
        assert distance <= 1 if i % 2 == 0 else distance > 3
        assert not np.array_equal(without[i, 0].numpy(), made[i])


def test_prompts_are_in_the_metadata_and_beside_their_rows(run, tmp_path):
    (tmp_path / "prompts.txt").write_text(f"\n{B}\n\n  \n{C}\n")
    arguments = ["--prompt", A, "--prompt-file", f"{tmp_path}/prompts.txt", "--count", "3"]
    sample.main([run, *arguments, "--out", f"{tmp_path}/out"])
    png = (tmp_path / "out/grid.png").read_bytes()
    picture = Image.open(io.BytesIO(png))
    assert picture.info["Prompt"] == f"{A}\n{B}\n{C}"
    assert caption_of(png).startswith("samples, conditional on caption, 3 prompts, averaged (EMA) weights")
    width, height = 6 * 8 + 2, 4 * 8 + 2  # of an image, enlarged, with a gap
    assert picture.size == (220 + 3 * width + 2, 3 * height + 2)
    rows = np.asarray(picture)
    alone = trainer.sample(load(run), 9, prompt=[A, B, C])
    for row in range(3):
        top = 2 + row * height
        assert 20 < (rows[top : top + height - 2, :220] < 128).sum() < 2000  # there is writing on white
        for column in range(3):
            left = 222 + column * width
            drawn = rows[top : top + height - 2 : 8, left : left + width - 2 : 8]
            assert np.array_equal(drawn, alone[row + 3 * column, 0].numpy())
    assert json.loads((tmp_path / "out/sampling.json").read_text())["prompts"] == [
        {"caption": text} for text in (A, B, C)
    ]

    sample.main([run, *arguments, "--format", "images", "--out", f"{tmp_path}/images"])
    stored = [Image.open(path).info["Prompt"] for path in sorted((tmp_path / "images").glob("*.png"))]
    assert stored == [A, B, C] * 3


def test_another_run_can_train_on_the_shards(run, tmp_path):
    arguments = [run, "--prompt", A, "--prompt", B, "--count", "6", "--format", "shards", "--shard-images", "8"]
    sample.main([*arguments, "--out", f"{tmp_path}/set"])
    assert index.main([f"{tmp_path}/set", "--levels", "256"]) == 0
    found = []
    for path in sorted((tmp_path / "set").glob("*.tar")):
        with tarfile.open(path) as tar:
            found += [tar.extractfile(member).read().decode() for member in tar if member.name.endswith(".txt")]
    assert found == [A, B] * 6
    assert Index.open(f"{tmp_path}/set").images == 12


def test_a_negative_prompt_changes_guided_samples(run, tmp_path):
    model = load(run)
    guided = trainer.sample(model, 4, prompt=A, guidance=4.0)
    away = trainer.sample(model, 4, prompt=A, negative=B, guidance=4.0)
    assert not torch.equal(guided, away)
    assert torch.equal(trainer.sample(model, 4, prompt=A, negative=B, guidance=0.0), trainer.sample(model, 4, prompt=B))
    sample.main(
        [
            run,
            "--prompt",
            A,
            "--negative",
            B,
            "--guidance",
            "4",
            "--count",
            "4",
            "--format",
            "images",
            "--out",
            f"{tmp_path}/a",
        ]
    )
    assert all(np.array_equal(one[0].numpy(), other) for one, other in zip(away, pictures(tmp_path / "a"), strict=True))


def test_prompts_of_the_configuration_are_drawn_at_every_evaluation(run, tmp_path):
    drawn = sorted((Path(run) / "pictures").glob("*.png"))
    assert [path.name for path in drawn] == ["prompts-000000000160.png", "prompts-000000000320.png"]
    caption = caption_of(drawn[-1].read_bytes())  # which W&B shows
    assert caption == f"samples, conditional on caption, averaged weights; row by row:\n{A}\n{LONG}"
    sample.main([run, "--prompt", A, "--prompt", LONG, "--out", f"{tmp_path}/out"])
    assert np.array_equal(np.asarray(Image.open(drawn[-1])), np.asarray(Image.open(tmp_path / "out/grid.png")))


@pytest.mark.parametrize(
    ("prompts", "message"),
    [(["lock", " "], "trainer.prompts: an empty caption; leave it out for samples without one")],
)
def test_prompts_of_the_configuration_are_checked_at_the_start(prompts, message, run):
    config = load_config(f"{run}/config.yaml")
    trainer_config = config.trainer.model_copy(update={"prompts": tuple(prompts)})
    with pytest.raises(ConfigError, match=message):
        resolve(config.model_copy(update={"trainer": trainer_config})).build_model(new=True)


def test_a_run_without_captions_takes_no_prompts(config_file):
    path = config_file(trainer={"prompts": ["lock"]})
    with pytest.raises(ConfigError, match=r"^trainer\.prompts: the model is not conditioned on captions$"):
        train_rank(load_config(path))


@pytest.mark.parametrize("name", ["run", "two_captions"])
def test_the_model_card_shows_how_to_sample_by_a_prompt(name, request, tmp_path):
    """Its command and its Python are run, and make the same images."""
    out = tmp_path / "exported"
    export(request.getfixturevalue(name), str(out))
    text = (out / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    names = {}
    exec(code[1], names)
    assert "prompt=" in code[1]
    command = re.search(r"```\npython -m jobs.sample (.*?)\n```", text)
    arguments = shlex.split(command[1])
    arguments[arguments.index("samples")] = str(tmp_path / "samples")
    sample.main([*arguments, "--format", "images"])
    made = pictures(tmp_path / "samples")
    assert all(np.array_equal(one[0].numpy(), other) for one, other in zip(names["images"], made, strict=True))
    assert ("![samples, conditional on caption, averaged weights](prompts.png)" in text) == (name == "run")
    assert (out / "prompts.png").exists() == (name == "run")


def test_trajectories_and_interpolations_take_prompts(run, tmp_path):
    arguments = [run, "--prompt", A, "--negative", B, "--guidance", "3", "--count", "1", "--out", f"{tmp_path}/out"]
    sample.main([*arguments, "--trajectory", "strip"])
    sample.main([*arguments, "--interpolate"])
    assert A in caption_of((tmp_path / "out/trajectory.png").read_bytes())
    assert A in caption_of((tmp_path / "out/interpolation.png").read_bytes())


def test_of_several_captions_each_is_named(two_captions, tmp_path):
    arguments = ["--prompt", f"caption={A}", "--prompt", f"caption={B}", "--prompt", "title=a drawing", "--count", "2"]
    sample.main([two_captions, *arguments, "--format", "shards", "--out", f"{tmp_path}/out"])
    plan = json.loads((tmp_path / "out/sampling.json").read_text())
    assert plan["prompts"] == [{"caption": A, "title": "a drawing"}, {"caption": B, "title": "a drawing"}]
    model = load(two_captions)
    both, one = (
        trainer.sample(model, 2, prompt=p, guidance=30.0) for p in ({"caption": A, "title": "x"}, {"caption": A})
    )
    assert not torch.equal(both, one)
    with pytest.raises(ConfigError, match=r"--prompt: 'lock': write caption=\.\.\. or title=\.\.\."):
        sample.main([two_captions, "--prompt", "lock", "--out", f"{tmp_path}/b"])
    with pytest.raises(ValueError, match="prompt: the model has captions caption and title; name the"):
        trainer.sample(model, 2, prompt="lock")
    with pytest.raises(ValueError, match="prompt: title has 2 prompts where another caption has 3"):
        trainer.sample(model, 2, prompt={"caption": [A, B, C], "title": [A, B]})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", " "], "--prompt: an empty caption; leave it out for samples without one"),
        (["--prompt-file", "nothing.txt"], "has no prompt, which is a line that is not blank"),
        (["--prompt-file", "latin.txt"], "latin.txt: is not UTF-8 text (byte 1)"),
        (["--prompt-file", "missing.txt"], "missing.txt"),
        (["--label", "3", "--prompt", A], "is not conditioned on labels"),
        (["--negative", A], "--negative: needs a prompt, or a label, to guide to"),
        (
            ["--prompt", A, "--negative", B],
            "--negative: has no effect at guidance 1; choose another",
        ),
        (["--prompt", A, "--negative", B, "--negative", C], "--negative: given 2 times; one holds for all prompts"),
        (["--prompt", A, "--count", "0"], "--count 0: at least 1"),
        (["--guidance", "2"], "--guidance: needs a condition to guide to, such as a label or a prompt"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(run, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("nothing.txt").write_text("\n  \n")
    Path("latin.txt").write_bytes(b"d\xe9j\xe0 vu\n")
    with pytest.raises((ConfigError, OSError)) as refused:
        sample.main([run, "--out", f"{tmp_path}/out", *arguments])
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [["--prompt", A], ["--negative", A], ["--prompt-file", "prompts.txt"]])
def test_a_model_without_captions_takes_no_prompt(arguments, tmp_path):
    other = a_run(tmp_path / "run", DIFFUSION)
    with pytest.raises(ConfigError, match=f"{arguments[0]}: {other} is not conditioned on captions"):
        sample.main([other, "--out", f"{tmp_path}/out", *arguments])
    with pytest.raises(ValueError, match="prompt: the model is not conditioned on captions"):
        trainer.sample(load(other), 2, prompt=A)


def test_a_cut_prompt_is_reported(run, tmp_path, capsys):
    long = " ".join(["zebra"] * 30)
    sample.main([run, "--prompt", long, "--count", "1", "--out", f"{tmp_path}/out"])
    assert "warning: prompt: cut after 8 tokens, the most that the model reads: 'zeb" in capsys.readouterr().err
    with pytest.warns(UserWarning, match="prompt: cut after 8 tokens") as seen:
        trainer.sample(load(run), 1, prompt=long)
    assert seen[0].filename == __file__


def test_without_tokenizers_only_prompts_fail(run, tmp_path):
    code = f"""
import sys
sys.modules["tokenizers"] = None  # as if it were not installed
import trainer
model = trainer.load({run!r})
trainer.sample(model, 1)
try:
    trainer.sample(model, 1, prompt="lock")
except ValueError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.stdout == "prompt: needs the package tokenizers: pip install tokenizers\n", done.stderr
