"""`jobs.evaluate` on captions: what they are worth, paired, by noise level and by retrieval."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.errors import DataError
from datasets.packing.encoding import encode
from datasets.shards.indexing import IndexOptions, index_shards
from jobs.config.loading import load_config
from jobs.errors import ConfigError
from jobs.evaluate import main as evaluate
from jobs.export import export
from jobs.run.training import train_rank
from tests.datasets.conditions.captioned_sets import WORDS
from tests.datasets.small_sets import write_members
from tests.testbed.ranks import together
from trainer.errors import TrainingError

IMAGES = 800


def write_rows(folder: Path, first: int, count: int) -> Path:
    """Binary images of 8 x 8 with one row lit, which the caption names, among noise; another caption says nothing."""
    members = []
    for number in range(first, first + count):
        drawn = np.random.default_rng(number)
        lit = np.arange(8)[:, None] == number % 8
        image = (drawn.random((8, 8)) < np.where(lit, 0.95, 0.05)).astype(np.uint8)
        word = f"{WORDS[number % 8]} row"
        fields = {"recaption": "an image", "word": word}
        files = {"png": encode(image[:, :, None], "png"), "txt": word.encode(), "json": json.dumps(fields).encode()}
        members += [(f"{number:06d}.{extension}", data) for extension, data in files.items()]
    write_members(folder / "0.tar", members)
    index_shards(str(folder), str(folder / "index"), IndexOptions(levels=2))
    return folder


def settings(folder: Path, **changes: object) -> dict:
    """The configuration of a small diffusion model of these images given their captions."""
    conditions = {"caption": {"kind": "text", "encoder": {"kind": "transformer", "width": 16, "depth": 1, "heads": 2}}}
    network = {"kind": "mlp", "width": 64, "depth": 1}
    return {
        "run": str(folder / "run"),
        "model": {
            "kind": "diffusion",
            "schedule": {"kind": "linear", "gamma_0": -6, "gamma_1": 5},
            "denoiser": {"network": network, "embedding": 32, "conditions": conditions},
            "condition_dropout": 0.2,
            "sampling": {"steps": 4},
        },
        "data": {
            "shards": str(write_rows(folder / "train", 0, 4000)),
            "validation": str(write_rows(folder / "validation", 10_000, IMAGES)),
            "streams": 1,
            "conditions": {"caption": {"kind": "text", "max_tokens": 6, "vocabulary": 300}},
        },
        "optim": {"lr": 0.004, "schedule": "constant", "ema": 2000},
        "trainer": {"images": 25_600, "batch": 128, "threads": 1, "pictures": 4, "evaluate_every": 10**6},
        "tracking": {"mode": "off"},
    } | changes


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> str:
    """A finished run."""
    folder = tmp_path_factory.mktemp("rows")
    (folder / "run.yaml").write_text(json.dumps(settings(folder)))
    config = load_config(str(folder / "run.yaml"))
    train_rank(config)
    return config.run


def reports(run: str, part: str) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted((Path(run) / "evaluations").glob(f"*{part}*.json"))]


@pytest.fixture(autouse=True)
def no_reports(run):
    """Each test finds its own."""
    yield
    for path in (Path(run) / "evaluations").glob("*"):
        path.unlink()


def test_a_caption_is_worth_what_pairing_shows(run, capsys):
    evaluate([run, "--against-condition", "none"])
    (found,) = reports(run, "against-none")
    figures = found["figures"]
    assert figures["paired/difference"] == pytest.approx(figures["paired/other"] - figures["paired/own"])
    assert 1.5 < figures["paired/difference"] < 4.5  # four seeds had 2.8 to 3.2; the caption has ln 8 = 2.08 nats
    assert figures["paired/unpaired_error"] > 3 * figures["paired/standard_error"]
    assert figures["paired/bpd/difference"] == pytest.approx(figures["paired/difference"] / 64 / np.log(2))
    assert found["against"]["conditions"] == {"caption": "none"}
    assert found["conditions"] == {"caption": "given"}
    assert [len(found[end]) for end in ("best", "worst")] == [10, 10]
    assert found["best"][0]["difference"] == max(image["difference"] for image in found["best"])
    assert found["best"][0]["shard"].endswith("validation/0.tar")
    said = capsys.readouterr().out
    assert f"none - given: {figures['paired/difference']:.4f} ± {figures['paired/standard_error']:.4f} nats" in said
    assert "an estimate of the information in the conditions about an image, no bound of it" in said
    with Image.open(next((Path(run) / "evaluations").glob("*.png"))) as plot:
        assert plot.size == (640, 350)


def test_shuffled_captions_cost_more_than_none(run, capsys):
    nats = {}
    for use in ("given", "none", "shuffled"):
        evaluate([run, "--condition", use])
    for found in reports(run, "validation-elbo"):
        nats[found["conditions"]["caption"]] = found["figures"]["evaluation/nats"]
    assert nats["given"] < nats["none"] < nats["shuffled"]
    said = capsys.readouterr().out
    assert "conditional on another image's caption" in said
    (same,) = [line for line in said.splitlines() if line.startswith("shuffled: ")]
    number = int(same.split()[1])
    assert 60 < number < 140
    assert same == f"shuffled: {number} of 800 images were given a caption equal to their own"
    evaluate([run, "--condition", "shuffled", "--batch", "7"])
    together(2, evaluate, [run, "--condition", "caption=shuffled", "--batch", "50"])
    (found,) = reports(run, "caption-shuffled")
    assert found["figures"]["evaluation/nats"] == pytest.approx(nats["shuffled"], rel=1e-6)


def test_other_captions_weights_and_runs_are_compared(run, tmp_path, capsys):
    evaluate([run, "--against-caption", "caption=json.recaption"])
    (found,) = reports(run, "against-json.recaption")
    assert found["figures"]["paired/difference"] > 0.5
    assert found["against"]["captions"] == "caption=json.recaption"
    evaluate([run, "--against-caption", "caption=json.word"])
    (same,) = reports(run, "against-json.word")
    assert (same["figures"]["paired/difference"], same["figures"]["paired/standard_error"]) == (0, 0)
    evaluate([run, "--against-weights", "raw"])
    (found,) = reports(run, "against-raw")
    assert found["against"]["weights"] == "raw"
    export(run, str(tmp_path / "exported"), "raw")
    evaluate([run, "--against", str(tmp_path / "exported")])
    (other,) = reports(run, "against-exported")
    assert other["figures"] == pytest.approx(found["figures"])
    assert "raw - ema: " in capsys.readouterr().out


def test_ranks_find_the_same_difference(run):
    evaluate([run, "--against-condition", "shuffled"])
    (alone,) = reports(run, "against-shuffled")
    together(2, evaluate, [run, "--against-condition", "shuffled", "--batch", "90"])
    (parted,) = reports(run, "against-shuffled")
    assert parted["figures"] == pytest.approx(alone["figures"], rel=1e-6)
    assert [image["key"] for image in parted["best"]] == [image["key"] for image in alone["best"]]


def test_noise_levels_have_a_table_a_plot_and_columns_for_each_use(run, capsys):
    evaluate([run, "--by-noise-level", "5"])
    (found,) = reports(run, "validation-ema-25600-by-noise-level-5")
    *levels, total = found["rows"]
    assert [level["t"] for level in levels] == ["0 to 0.2", "0.2 to 0.4", "0.4 to 0.6", "0.6 to 0.8", "0.8 to 1"]
    assert list(total["values"]) == ["given", "none", "shuffled"]
    for use in total["values"]:
        assert sum(level["values"][use]["mean"] for level in levels) == pytest.approx(total["values"][use]["mean"])
    evaluate([run, "--samples", "5", "--condition", "none"])
    (whole,) = reports(run, "elbo-5-caption-none")
    assert whole["figures"]["evaluation/rate/diffusion"] == pytest.approx(total["values"]["none"]["mean"], rel=1e-5)
    assert found["figures"]["noise/all/none_difference"] == total["differences"]["none"]["mean"] > 0.5
    assert "log SNR" in capsys.readouterr().out
    assert next((Path(run) / "evaluations").glob("*by-noise-level-5*.png")).stat().st_size > 5000


def test_the_fixed_levels_of_the_benchmark(run, capsys):
    evaluate([run, "--by-noise-level", "mlperf", "--images", "200"])
    (found,) = reports(run, "by-noise-level-mlperf")
    assert [row["t"] for row in found["rows"]] == [f"{(i + 0.5) / 8:g}" for i in range(8)] + ["all"]
    assert found["images"] == 200
    assert found["unit"] == "mean squared error of v"
    values = [row["values"]["given"]["mean"] for row in found["rows"]]
    assert values[-1] == pytest.approx(sum(values[:-1]) / 8)
    assert "8 equidistant times of MLPerf's FLUX.1" in capsys.readouterr().out


def test_the_bound_finds_the_caption_of_an_image(run, capsys):
    evaluate([run, "--retrieval", "4", "--images", "400", "--samples", "8"])
    (found,) = reports(run, "retrieval-4")
    figures = found["figures"]
    assert figures["retrieval/chance"] == 0.25
    assert figures["retrieval/caption"] > 0.5
    assert figures["retrieval/image_by_gain"] > 0.35
    assert (found["images"], found["groups"]) == (400, 100)
    said = capsys.readouterr().out
    assert "400 images with 4 captions each and with none: 2,000 bounds of 8 draws" in said
    assert f"caption of an image, by the bound: {figures['retrieval/caption']:.1%}" in said
    together(2, evaluate, [run, "--retrieval", "4", "--images", "400", "--samples", "8", "--batch", "30"])
    (parted,) = reports(run, "retrieval-4")
    assert parted["figures"] == pytest.approx(figures)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (["--retrieval", "1"], ConfigError, "--retrieval 1: at least 2"),
        (["--retrieval", "801"], TrainingError, "retrieval among 801: there are 800 images"),
        (["--retrieval", "4", "--condition", "none"], ConfigError, "--retrieval: needs a condition that is given"),
        (["--retrieval", "4", "--by-noise-level"], ConfigError, "--by-noise-level and --retrieval: one at a time"),
        (
            ["--by-noise-level", "many"],
            ConfigError,
            "--by-noise-level many: a number of bins from 1 to 1000, or mlperf",
        ),
        (["--by-noise-level", "--samples", "2"], ConfigError, "is of the elbo, with one draw an image in each bin"),
        (["--images", "0"], ConfigError, "--images 0: at least 1"),
        (["--against-caption", "text=json.word"], ConfigError, "with the name of a caption, the run has caption"),
        (["--against-caption", "caption=json.no"], DataError, "its .json has no text 'json.no'"),
        (["--against-condition", "maybe"], TrainingError, "condition maybe: one of given, none, shuffled"),
    ],
)
def test_impossible_options_are_errors_of_one_line(run, options, error, message):
    with pytest.raises(error) as raised:
        evaluate([run, *options])
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_export_does_not_say_where_captions_are(run, tmp_path):
    export(run, str(tmp_path / "exported"))
    shards = str(Path(run).parent / "validation")
    with pytest.raises(ConfigError, match="nothing feeds the condition caption"):
        evaluate([str(tmp_path / "exported"), "--split", shards])
    evaluate([str(tmp_path / "exported"), "--split", shards, "--condition", "none"])
