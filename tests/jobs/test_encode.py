"""jobs.encode as a person starts it: ready-made encoders, kills, and a run that trains on the results."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from cluster.storage.storage import Storage
from datasets.config import DataConfig
from datasets.errors import DataError
from datasets.loading.build import evaluation_batches
from datasets.npy import decode_floats, read_npy_header
from datasets.order.order import Range
from datasets.reading.shard_reader import ShardReader
from datasets.shards.column_tables import read_columns
from datasets.shards.index import Index
from jobs.config.loading import load_config
from jobs.encode import encoder_name
from jobs.encode import main as encode
from jobs.errors import ConfigError
from jobs.evaluate import main as evaluate
from jobs.run.training import train_rank
from jobs.select import main as select
from tests.datasets.conditions.captioned_sets import caption, tokenizer, write_captioned
from tests.datasets.small_sets import write_set
from tests.testbed.processes import start_module, wait_until
from trainer.checkpoints.export import load
from trainer.errors import TrainingError

NUMBERS = "tests.datasets.encoding.encoders:Numbers"


def column(out: Path, name: str) -> list[float]:
    """A scalar of all samples, in the order of the shards."""
    tables = [read_columns(Storage(str(out)), path.name.removesuffix(".arrow")) for path in _sorted(out / "columns")]
    return [value for table in tables for value in table.column(name).to_pylist()]


def _sorted(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.arrow"))


def arrays(shards: str, out: Path, extension: str) -> list[np.ndarray]:
    """The arrays of all samples, read as a run reads them."""
    index = Index.open(shards, "", (str(out),))
    reader = ShardReader(index, members=(extension,))
    found = []
    for shard, images in enumerate(index.counts.tolist()):
        held = reader.read(Range(shard, 0, images))
        for row in range(images):
            data = reader.member(held, row, extension)
            found.append(None if data is None else decode_floats(data, read_npy_header(data)))
    return found


@pytest.fixture(scope="module")
def run(digits, tmp_path_factory) -> str:
    """A finished tiny run."""
    folder = tmp_path_factory.mktemp("run")
    network = {"kind": "mlp", "hidden": [32]}
    path = folder / "run.yaml"
    values = {
        "run": str(folder / "run"),
        "model": {"kind": "vae", "latent": 4, "encoder": network, "decoder": network},
        "data": {"shards": str(digits / "train"), "validation": str(digits / "validation"), "streams": 4},
        "trainer": {"images": 640, "batch": 64, "threads": 1, "evaluate_every": 640},
        "tracking": {"mode": "off"},
    }
    path.write_text(json.dumps(values))
    train_rank(load_config(str(path)))
    return values["run"]


def test_the_bound_of_each_image_is_the_one_that_an_evaluation_finds(run, digits, tmp_path, capsys):
    encode([str(digits / "validation"), "--with", f"bound:{run}", "--out", str(tmp_path / "bound"), "--batch", "50"])
    assert "bound.bpd (scalar), bound.nats (scalar), 0.0 MB" in capsys.readouterr().out
    nats = column(tmp_path / "bound", "bound.nats")
    evaluate([run])
    report = next(Path(run, "evaluations").glob("validation-elbo-1-ema-*.json"))
    figures = json.loads(report.read_text())["figures"]
    assert np.mean(nats) == pytest.approx(figures["evaluation/nats"], rel=1e-9)
    bpd = column(tmp_path / "bound", "bound.bpd")
    assert np.mean(bpd) == pytest.approx(figures["evaluation/bpd"], rel=1e-9)
    worst = json.loads(report.read_text())["worst"][0]
    assert max(nats) == pytest.approx(worst["nats"], abs=1e-3)


def test_images_are_selected_by_their_bound(run, digits, tmp_path, capsys):
    url, out = str(digits / "validation"), str(tmp_path / "bound")
    encode([url, "--with", f"bound:{run}", "--out", out])
    nats = np.array(column(tmp_path / "bound", "bound.nats"))
    limit = round(float(np.median(nats)), 3)
    select([url, "--where", f"bound.nats < {limit}", "--columns", out, "--out", str(tmp_path / "easy")])
    assert Index.open(url, str(tmp_path / "easy")).images == (nats < limit).sum() > 0
    assert "images match" in capsys.readouterr().out


def test_the_latents_are_those_that_the_model_infers(run, digits, tmp_path):
    url = str(digits / "validation")
    encode([url, "--with", f"latents:{run}", "--out", str(tmp_path / "latents"), "--dtype", "float32"])
    means, scales = (arrays(url, tmp_path / "latents", f"latent.{name}.npy") for name in ("mean", "log_scale"))
    model = load(run)
    index = Index.open(url)
    with evaluation_batches(DataConfig(shards=url, workers=0), index, batch=index.images) as batches, torch.no_grad():
        from trainer.noise import Noise

        batch = next(batches)
        q = model.encode(batch.images, Noise(0, "evaluate", batch.positions))
    assert np.allclose(np.stack(means), q.mean.numpy(), atol=1e-5)
    assert np.allclose(np.stack(scales), q.log_scale.numpy(), atol=1e-5)


def test_captions_are_encoded_without_padding(tmp_path, capsys):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    small = {"d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 2, "num_heads": 2, "vocab_size": 320}
    encoder = transformers.T5EncoderModel(transformers.T5Config(**small)).eval()
    encoder.save_pretrained(tmp_path / "t5")
    (tmp_path / "t5" / "tokenizer.json").write_text(tokenizer())

    def members(number):
        return {} if number == 3 else {"txt": b" " if number == 4 else (caption(number) + " x" * (number % 5)).encode()}

    url = write_captioned(tmp_path / "set", [8, 4], members).url
    encode(
        [url, "--with", f"text:{tmp_path}/t5", "--out", str(tmp_path / "text"), "--dtype", "float32", "--batch", "5"]
    )
    found = arrays(url, tmp_path / "text", "text.npy")
    assert [number for number, values in enumerate(found) if values is None] == [3, 4]
    from tokenizers import Tokenizer

    words = Tokenizer.from_str(tokenizer())
    for number in (0, 1, 2, 5, 11):
        ids = torch.tensor([words.encode(caption(number) + " x" * (number % 5)).ids])
        with torch.no_grad():
            alone = encoder(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]
        assert found[number].shape == (ids.shape[1], 16)
        assert np.allclose(found[number], alone.numpy(), atol=1e-5)
    _train_on_sequences(url, tmp_path)


def _train_on_sequences(url: str, folder: Path) -> None:
    """The encoded captions are a condition of a model, which has no encoder of its own."""
    network = {"kind": "dit", "patch": 2, "width": 8, "depth": 1, "heads": 2}
    taken = {"caption": {"kind": "sequence", "size": 16, "width": 8}}
    denoiser = {"network": network, "embedding": 8, "conditions": taken}
    values = {
        "run": str(folder / "run"),
        "model": {"kind": "diffusion", "denoiser": denoiser, "sampling": {"steps": 2}},
        "data": {
            "shards": url,
            "validation": url,
            "columns": [str(folder / "text")],
            "conditions": {"caption": {"kind": "sequence", "member": "text.npy", "size": 16, "max_tokens": 9}},
            "streams": 1,
        },
        "trainer": {"images": 24, "batch": 4, "threads": 1, "evaluate_every": 24, "pictures": 2},
        "tracking": {"mode": "off"},
    }
    path = folder / "run.json"
    path.write_text(json.dumps(values))
    config = load_config(str(path), ["model.denoiser.conditions.caption.size=12"])
    with pytest.raises(ConfigError, match=r"caption\.size: 12; data\.conditions\.caption\.size is 16"):
        train_rank(config)
    assert train_rank(load_config(str(path))).finished
    evaluate([values["run"], "--against-condition", "none"])
    (report,) = Path(values["run"], "evaluations").glob("*against*.json")
    rows = {row["key"]: row["difference"] for row in json.loads(report.read_text())["best"]}
    assert rows["000003"] == rows["000004"] == 0  # those without a caption
    assert rows["000011"] != 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--with", "bound:"], "--with bound:: bound:URL"),
        (["--with", NUMBERS, "--option", "scale"], "--option scale: not NAME=VALUE"),
        (["--with", NUMBERS, "--batch", "0"], "--batch 0: at least 1"),
        (["--with", "text:nowhere"], "a folder with config.json, .*tokenizer.json"),
        (["--with", "bound:{run}", "--option", "samples=0"], "samples=0: a number of at least 1"),
        (["--with", "bound:{run}", "--option", "draws=3"], "unexpected keyword argument 'draws'"),
        (["--with", "latents:{set}"], "config"),
    ],
)
def test_what_cannot_be_encoded_is_refused_in_one_line(run, tmp_path, arguments, message):
    write_set(tmp_path / "set", (4,))
    given = [argument.format(run=run, set=tmp_path / "set") for argument in arguments]
    with pytest.raises((ConfigError, DataError, TrainingError), match=message) as error:
        encode([str(tmp_path / "set"), *given, "--out", str(tmp_path / "out")])
    assert "\n" not in str(error.value)


def test_images_of_another_size_are_refused(run, tmp_path):
    write_set(tmp_path / "set", (4,))
    with pytest.raises(ConfigError, match="size of the images: 4 x 6; of the training images"):
        encode([str(tmp_path / "set"), "--with", f"bound:{run}", "--out", str(tmp_path / "out")])
    with pytest.raises(ConfigError, match="is the set itself"):
        encode([str(tmp_path / "set"), "--with", NUMBERS, "--out", str(tmp_path / "set" / "out")])


def test_a_run_trains_on_joined_columns_and_resumes_only_on_the_same(tmp_path):
    write_set(tmp_path / "set", (16, 16), labels=False)
    url = str(tmp_path / "set")
    for name, scale in (("out", "1"), ("copy", "1"), ("other", "2")):
        encode([url, "--with", NUMBERS, "--option", f"scale={scale}", "--out", str(tmp_path / name)])
    network = {"kind": "mlp", "hidden": [8]}
    values = {
        "run": str(tmp_path / "run"),
        "model": {
            "kind": "vae",
            "latent": 2,
            "encoder": network,
            "decoder": network,
            "conditions": {"clip": {"kind": "vector", "size": 3}},
        },
        "data": {
            "shards": url,
            "validation": url,
            "columns": [str(tmp_path / "out")],
            "conditions": {"clip": {"kind": "vector", "member": "clip.npy", "size": 3}},
            "streams": 1,
        },
        "trainer": {"images": 64, "batch": 16, "threads": 1, "evaluate_every": 32, "log_every": 16},
        "tracking": {"mode": "off"},
    }
    path = tmp_path / "run.json"

    def train(**changes):
        path.write_text(json.dumps(values))
        return train_rank(load_config(str(path), [f"{key}={value}" for key, value in changes.items()]))

    train()
    with pytest.raises(DataError, match=r"data.conditions.clip: .* no member .clip.npy; they have png"):
        train(**{"data.columns": "[]", "trainer.images": 96})
    with pytest.raises(TrainingError, match=r"was started with other results of encoders in data.columns"):
        train(**{"data.columns": f"[{tmp_path}/other]", "trainer.images": 96})
    train(**{"data.columns": f"[{tmp_path}/copy]", "trainer.images": 96})
    evaluate([values["run"], "--against-condition", "none"])


def start(out: Path, shards: Path, log: Path):
    """The job with two workers, in a process group of its own."""
    arguments = [str(shards), "--with", NUMBERS, "--out", str(out), "--batch", "4", "--processes", "2"]
    return start_module("jobs.encode", arguments, log)


def tars(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.tar"))}


def kill_again_and_again(tmp_path: Path, kills: list[int], shards: int) -> None:
    """Kill a job of two workers each time that it has completed some more shards, then compare with one that ended."""
    write_set(tmp_path / "set", (6,) * shards)
    out, log = tmp_path / "out", tmp_path / "log"
    encode([str(tmp_path / "set"), "--with", NUMBERS, "--out", str(tmp_path / "whole"), "--batch", "4"])
    for complete in kills:
        process = start(out, tmp_path / "set", log)
        members = out / "members"

        def far_enough(wanted=complete, folder=members, job=process):
            return len(list(folder.glob("*.arrow"))) >= wanted or job.poll() is not None

        wait_until(far_enough, 250, f"{complete} shards", pause=0.001)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert not (out / "shards.arrow").exists() or complete == shards
    process = start(out, tmp_path / "set", log)
    assert process.wait(250) == 0, log.read_text()
    assert tars(out) == tars(tmp_path / "whole")
    assert column(out, "score") == column(tmp_path / "whole", "score")
    keys = [key for path in _sorted(out / "members") for key in _keys(out, path)]
    assert keys == [f"{number:06d}" for number in range(6 * shards)]  # nothing is missing, nothing is twice
    index = Index.open(str(tmp_path / "set"), "", (str(out),))
    whole = Index.open(str(tmp_path / "set"), "", (str(tmp_path / "whole"),))
    assert index.joins.fingerprint() == whole.joins.fingerprint()


def _keys(out: Path, path: Path) -> list[str]:
    from datasets.shards.encoded import read_record

    keys: list[str] = read_record(Storage(str(out)), path.name.removesuffix(".arrow"))[0].column("key").to_pylist()
    return keys


def test_a_job_that_is_killed_ends_with_the_same_bytes(tmp_path):
    kill_again_and_again(tmp_path, [3], 12)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_job_that_is_killed_ten_times_ends_with_the_same_bytes(tmp_path):
    drawn = np.random.default_rng(int.from_bytes(os.urandom(4), "little"))
    kill_again_and_again(tmp_path, sorted(drawn.choice(np.arange(1, 40), 10, replace=False).tolist()), 40)


def test_the_names_of_encoders(tmp_path):
    assert encoder_name("m:f", ["a=1=2"]) == ("m:f", (("a", "1=2"),))
    assert encoder_name(f"bound:{tmp_path}", ["seed=3"]).options == (("run", str(tmp_path)), ("seed", "3"))
