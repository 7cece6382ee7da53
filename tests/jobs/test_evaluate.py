"""Evaluating a run afterwards: the same figures by one process or many; and models side by side."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from cluster.storage.storage import Storage
from datasets.errors import DataError
from datasets.shards.index import Index
from jobs.compare import main as compare
from jobs.config.loading import load_config
from jobs.evaluate import main as evaluate
from jobs.run.training import train_rank
from tests.jobs.conftest import BATCH
from tests.testbed.jobs import call_job
from tests.testbed.ranks import together
from tests.testbed.steps import train
from trainer.checkpoints.journal import read_metrics
from trainer.errors import TrainingError


@pytest.fixture
def finished(config_file):
    """A finished tiny run and the evaluation that it ended with."""
    config = load_config(str(config_file()))
    return config.run, train_rank(config).evaluation


def report(run: str, name: str) -> dict:
    return json.loads((Path(run) / f"evaluations/{name}.json").read_text())


def test_the_final_evaluation_is_found_again(finished, capsys):
    run, at_the_end = finished
    evaluate([run])
    found = report(run, "validation-elbo-1-ema")
    assert found["figures"] == pytest.approx(at_the_end.row("evaluation"), rel=1e-9)
    assert found["images"] == 270
    said = capsys.readouterr().out
    assert "270 images of validation, averaged (EMA) weights after 1,280 images, unconditional" in said
    assert (found["precision"], found["conditional"], found["images_seen"]) == ("fp32", False, 20 * BATCH)
    assert f"{at_the_end.bpd:.4f}" in said
    assert "rate z1" in said


def test_the_batch_size_changes_no_figure(finished):
    run, at_the_end = finished
    for size in ("7", "64", "270"):
        evaluate([run, "--batch", size])
        figures = report(run, "validation-elbo-1-ema")["figures"]
        assert figures == pytest.approx(at_the_end.row("evaluation"), rel=1e-7)


def test_a_run_that_trains_in_bfloat16_is_evaluated_in_float32(config_file, capsys):
    config = load_config(str(config_file(trainer={"precision": "bf16"})))
    at_the_end = train_rank(config).evaluation
    assert at_the_end.precision == "fp32"
    rows = [row for row in read_metrics(Storage(config.run)) if "validation/nats" in row]
    assert [row["validation/precision"] for row in rows] == ["fp32"] * 2
    evaluate([config.run])
    full = report(config.run, "validation-elbo-1-ema")["figures"]
    assert full == pytest.approx(at_the_end.row("evaluation"), rel=1e-7)
    evaluate([config.run, "--precision", "bf16"])
    half = report(config.run, "validation-elbo-1-ema-bf16")
    assert half["precision"] == "bf16"
    assert 1e-6 < abs(half["figures"]["evaluation/nats"] / full["evaluation/nats"] - 1) < 0.05
    assert " nats), bf16" in capsys.readouterr().out


def test_an_unknown_bound_is_an_error_that_lists_the_bounds_of_the_model(finished):
    run, _ = finished
    with pytest.raises(TrainingError, match=r"^a Vae has no bound flow; it has elbo, iw$"):
        evaluate([run, "--bound", "flow"])
    with pytest.raises(TrainingError, match=r"^a Vae has a fixed number of latents$"):
        evaluate([run, "--steps", "5"])


def test_ranks_find_what_one_process_finds(finished):
    run, _ = finished
    evaluate([run, "--samples", "2", "--split", "train"])
    alone = report(run, "train-elbo-2-ema")
    for ranks in (2, 3):
        together(ranks, evaluate, [run, "--samples", "2", "--split", "train"])
        parted = report(run, "train-elbo-2-ema")
        assert parted["images"] == alone["images"] == 1527
        assert parted["figures"] == pytest.approx(alone["figures"], rel=1e-6)


def test_the_importance_weighted_bound_is_tighter_and_has_no_rates(finished):
    run, _ = finished
    for samples in (1, 8, 32):
        evaluate([run, "--bound", "iw", "--samples", str(samples)])
    evaluate([run, "--samples", "8"])
    bounds = [report(run, f"validation-iw-{samples}-ema")["figures"] for samples in (1, 8, 32)]
    assert bounds[0]["evaluation/nats"] > bounds[1]["evaluation/nats"] > bounds[2]["evaluation/nats"]
    assert report(run, "validation-elbo-8-ema")["figures"]["evaluation/nats"] > bounds[1]["evaluation/nats"]
    assert not any("rate" in name or "distortion" in name for name in bounds[0])


@pytest.mark.parametrize("share", [0.2, 0.01])
def test_bad_images_up_to_a_share_are_left_out_with_a_warning(config_file, digits, tmp_path, capsys, share):
    data = {"on_bad": "quarantine", "bad_share": share, "workers": 0}
    config = load_config(str(config_file(data=data, trainer={"images": 2 * BATCH})))
    train_rank(config)
    run = config.run
    damaged = tmp_path / "damaged"
    shutil.copytree(digits / "validation", damaged)
    index = Index.open(str(damaged))
    (damaged / index.name(0)).unlink()
    left = 270 - int(index.counts[0])
    told = f"{damaged}: {270 - left} of 270 images are bad and were left out"
    if share < 0.1:
        with pytest.raises(DataError, match=f"^{told}, more than data.bad_share allows$|quarantined in epoch 0"):
            evaluate([run, "--split", str(damaged)])
    else:
        evaluate([run, "--split", str(damaged)])
        said = capsys.readouterr().out
        assert f"warning: {told}; python -m jobs.verify names them" in said
        assert f"{left} images" in said


def told_what_is_wrong(path, told):
    """A rank that writes down why it could not train."""
    try:
        train(path)
    except DataError as error:
        Path(f"{told}-{os.environ['RANK']}").write_text(str(error))


def test_bad_images_of_all_ranks_count_in_the_evaluation_of_a_run(config_file, digits, tmp_path):
    """Each of two ranks has fewer than the share allows, both together have more."""
    damaged = tmp_path / "damaged"
    shutil.copytree(digits / "validation", damaged)
    index = Index.open(str(damaged))
    missing = [int(index.counts[0]), int(index.counts[-1])]
    assert 1.2 * max(missing) < sum(missing)
    for shard in (0, len(index.counts) - 1):
        (damaged / index.name(shard)).unlink()
    share = 1.2 * max(missing) / index.images
    path = config_file(data={"on_bad": "quarantine", "bad_share": share, "validation": str(damaged), "workers": 0})
    together(2, told_what_is_wrong, path, tmp_path / "told")
    line = f"{damaged}: {sum(missing)} of 270 images are bad and were left out, more than data.bad_share allows"
    assert [Path(f"{tmp_path}/told-{rank}").read_text() for rank in (0, 1)] == [line, line]


def test_a_folder_without_a_run_is_an_error_of_one_line(tmp_path):
    ended = call_job("evaluate", str(tmp_path))
    assert ended.status == 1
    assert ended.error == f"error: {tmp_path}: no run here; a run folder has a config.yaml"


def test_models_side_by_side(config_file, tmp_path, capsys):
    small = config_file("small")
    network = {"kind": "mlp", "hidden": [16]}
    deep = {"kind": "hvae", "latents": [4, 2], "hidden": [8], "encoder": network, "decoder": network}
    hierarchy = config_file("deep", model=deep, trainer={"precision": "bf16"})
    out = tmp_path / "side-by-side"
    arguments = [str(small), str(hierarchy), "--out", str(out), "--samples", "2", f"trainer.images={10 * BATCH}"]
    compare(arguments)
    rows = json.loads((out / "table.json").read_text())
    assert {row["model"] for row in rows} == {"small", "deep"}
    by_name = {row["model"]: row for row in rows}
    assert {"evaluation/rate/z1", "evaluation/rate/z2"} <= by_name["deep"].keys()
    assert by_name["small"]["evaluation/bpd"] > 0
    table = (out / "table.md").read_text()
    assert table in capsys.readouterr().out
    assert table.count("\n| ") == 3  # the head and a line a model
    with Image.open(out / "samples.png") as picture:
        assert picture.size == (16 * 50 + 2, 2 * (26 + 2 * 50 + 2))

    compare(arguments)  # nothing is trained again
    assert "is finished" in capsys.readouterr().out


def test_models_on_other_images_are_not_compared(config_file, digits):
    one = config_file("one")
    two = config_file("two", data={"shards": str(digits / "validation")})
    ended = call_job("compare", str(one), str(two))
    assert ended.status == 1
    assert "one and two have different data.shards" in ended.error
