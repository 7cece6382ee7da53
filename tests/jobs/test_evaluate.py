"""Evaluating a run afterwards: the same figures by one process or many; and models side by side."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cluster.storage.storage import Storage
from datasets.errors import DataError
from datasets.packing.sources.source import Example
from datasets.packing.write import write_tar
from datasets.shards.index import Index
from jobs.compare import main as compare
from jobs.config.loading import load_config
from jobs.errors import ConfigError
from jobs.evaluate import main as evaluate
from jobs.export import export
from jobs.index import main as make_index
from jobs.run.reports import keep, subject_of
from jobs.run.training import train_rank
from jobs.run.worst import outlier
from tests.jobs.conftest import BATCH
from tests.testbed.jobs import call_job
from tests.testbed.processes import REPOSITORY
from tests.testbed.ranks import together
from tests.testbed.steps import train
from trainer.checkpoints.export import load
from trainer.checkpoints.journal import read_metrics
from trainer.errors import TrainingError
from trainer.noise import Noise
from trainer.tracking.captions import caption_of
from trainer.training.evaluation import Evaluation


@pytest.fixture
def finished(config_file):
    """A finished tiny run and the evaluation that it ended with."""
    config = load_config(str(config_file()))
    return config.run, train_rank(config).evaluation


def report(run: str, name: str, images: int = 20 * BATCH) -> dict:
    return json.loads((Path(run) / f"evaluations/{name.replace('-ema', f'-ema-{images}')}.json").read_text())


def test_the_final_evaluation_is_found_again(finished, capsys):
    run, at_the_end = finished
    evaluate([run])
    found = report(run, "validation-elbo-1-ema")
    assert found["figures"] == pytest.approx(at_the_end.row("evaluation"), rel=1e-9)
    assert found["images"] == 270
    said = capsys.readouterr().out
    assert " nats), unconditional, fp32\n270 images of validation, averaged (EMA) weights after 1,280 images\n" in said
    assert (found["precision"], found["conditions"], found["images_seen"]) == ("fp32", {}, 20 * BATCH)
    assert f"{at_the_end.bpd:.4f}" in said
    assert "rate z1" in said


def test_each_figure_has_a_file_of_its_own(finished, config_file, digits):
    run, _ = finished
    for more in (
        [],
        ["--seed", "1"],
        ["--samples", "2"],
        ["--bound", "iw"],
        ["--weights", "raw"],
        ["--precision", "bf16"],
        ["--split", "train"],
        ["--split", f"{digits}/train"],
        ["--split", f"{digits}/validation"],
    ):
        evaluate([run, *more])
    reports = {path.name: json.loads(path.read_text()) for path in (Path(run) / "evaluations").iterdir()}
    assert len(reports) == 9
    assert "validation-elbo-1-ema-1280.json" in reports
    evaluate([run])  # again: the same file
    train_rank(load_config(str(config_file()), [f"trainer.images={22 * BATCH}"]))
    evaluate([run])
    names = {path.name for path in (Path(run) / "evaluations").iterdir()}
    assert names == reports.keys() | {f"validation-elbo-1-ema-{22 * BATCH}.json"}


def test_a_report_never_replaces_one_about_something_else(tmp_path, finished):
    subject = subject_of(finished[0])
    for seed in (0, 1, 0):
        keep(subject, "name", {"seed": seed, "figures": {"evaluation/nats": 1.0 + seed}, "worst": []})
    written = {path.name: json.loads(path.read_text()) for path in (Path(finished[0]) / "evaluations").iterdir()}
    assert len(written) == 2
    assert written["name.json"]["seed"] == 0
    assert sorted(each["seed"] for each in written.values()) == [0, 1]


def test_an_export_is_evaluated_like_its_run(finished, digits, tmp_path, capsys):
    run, at_the_end = finished
    export(run, str(tmp_path / "exported"))
    evaluate([f"{tmp_path}/exported", "--split", f"{digits}/validation"])
    (path,) = (tmp_path / "exported/evaluations").iterdir()
    assert json.loads(path.read_text())["figures"] == pytest.approx(at_the_end.row("evaluation"), rel=1e-9)
    assert "warning" not in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"exported: an export has no images of its own; name shards by --split URL$"):
        evaluate([f"{tmp_path}/exported"])


def test_an_export_sees_the_images_as_its_run_did(config_file, digits, tmp_path):
    config = load_config(str(config_file(data={"transform": {"size": [4, 4]}}, trainer={"images": 2 * BATCH})))
    found = train_rank(config).evaluation
    export(config.run, str(tmp_path / "exported"))
    evaluate([f"{tmp_path}/exported", "--split", f"{digits}/validation"])
    (path,) = (tmp_path / "exported/evaluations").iterdir()
    assert json.loads(path.read_text())["figures"] == pytest.approx(found.row("evaluation"), rel=1e-9)


def test_a_model_exported_into_the_folder_of_its_run_does_not_replace_the_runs_own(finished, config_file, tmp_path):
    run, _ = finished
    with pytest.raises(ConfigError, match="is the folder of a run; give --out another folder"):
        export(run, run)
    export(run, str(tmp_path / "exported"))
    for name in ("config.json", "model.safetensors"):  # as earlier versions did
        shutil.copy(tmp_path / "exported" / name, run)
    at_the_end = train_rank(load_config(str(config_file()), [f"trainer.images={22 * BATCH}"])).evaluation
    evaluate([run])
    found = report(run, "validation-elbo-1-ema", 22 * BATCH)
    assert found["images_seen"] == 22 * BATCH
    assert found["figures"] == pytest.approx(at_the_end.row("evaluation"), rel=1e-9)


def test_the_images_with_the_largest_bounds_are_named(finished, digits, capsys):
    run, _ = finished
    evaluate([run])
    worst = report(run, "validation-elbo-1-ema")["worst"]
    assert len(worst) == 10
    assert [image["nats"] for image in worst] == sorted((image["nats"] for image in worst), reverse=True)
    assert worst[0]["nats"] == pytest.approx(worst[0]["distortion"] + worst[0]["z1"])
    assert f"largest bound {worst[0]['nats']:.4f} nats: {worst[0]['key']} in {worst[0]['shard']}" in (
        capsys.readouterr().out
    )
    last = [row for row in read_metrics(Storage(run)) if "validation/nats" in row][-1]
    assert same_images(last["validation/worst"], worst)

    place, levels = 0, {}  # where each image is in the set, found without the index
    for shard in sorted((digits / "validation").glob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar.getmembers():
                if member.name.endswith(".png"):
                    pixels = np.asarray(Image.open(io.BytesIO(tar.extractfile(member).read())))
                    levels[str(shard), member.name.removesuffix(".png")] = place, torch.from_numpy(pixels.copy())
                    place += 1
    model = load(run)
    for image in worst:
        place, pixels = levels[image["shard"], image["key"]]
        noise = Noise(0, "evaluate", torch.tensor([place]))
        with torch.no_grad():
            found = model(pixels[None, None], None, noise, torch.zeros(())).negative_bound
        assert found.item() == pytest.approx(image["nats"], rel=1e-5)

    for ranks in (2, 3):
        together(ranks, evaluate, [run, "--batch", "50"])
        assert same_images(report(run, "validation-elbo-1-ema")["worst"], worst)


def same_images(one: list[dict], other: list[dict]) -> bool:
    return [(a["shard"], a["key"], pytest.approx(a["nats"], rel=1e-6)) for a in one] == [
        (b["shard"], b["key"], b["nats"]) for b in other
    ]


def test_one_image_that_decides_the_mean_is_named():
    found = Evaluation(1000, 16_366.0, 1.0, 0.0, {}, 784, False)
    image = {"shard": "a/0.tar", "key": "7", "nats": 1.6e7}
    assert outlier(found, [image]) == (
        "one image alone has 16,000,000.0 of the 16,366,000.0 nats of all 1,000 images: 7 in a/0.tar"
    )
    assert outlier(found, [image | {"nats": 1.5e6}]) == ""
    assert outlier(found, []) == ""


def test_a_report_is_written_though_the_reader_of_its_lines_leaves(finished):
    run, _ = finished
    command = f"{sys.executable} -m jobs.evaluate {run} | true; exit ${{PIPESTATUS[0]}}"
    ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert ended.returncode == 0
    assert ended.stderr in ("", "stdout cannot be written to (Broken pipe); the work continues without it\n")
    assert report(run, "validation-elbo-1-ema")["images"] == 270


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
    assert " nats), unconditional, bf16" in capsys.readouterr().out


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


CONDITIONAL = {
    "kind": "diffusion",
    "denoiser": {
        "network": {"kind": "mlp", "width": 16, "depth": 1},
        "embedding": 8,
        "conditions": {"label": {"kind": "class"}},
    },
    "condition_dropout": 0.2,
    "sampling": {"steps": 3},
}


def test_every_figure_of_a_conditional_model_says_what_it_is_conditional_on(config_file, capsys):
    config = load_config(str(config_file(model=CONDITIONAL)))
    given = train_rank(config).evaluation
    said = capsys.readouterr().out
    assert f"validation {given}, averaged weights" in said
    assert " nats), conditional on label, fp32, averaged weights" in said
    assert " bpd, conditional on label (label hidden from 20% of the images)  " in said
    rows = read_metrics(Storage(config.run))
    assert {row["validation/conditions"] for row in rows if "validation/nats" in row} == {"conditional on label"}
    hidden = "conditional on label (label hidden from 20% of the images)"
    assert {row["train/conditions"] for row in rows if "train/nats" in row} == {hidden}
    captions = {name: picture_caption(config.run, name) for name in ("samples", "reconstructions", "trajectories")}
    assert captions["samples"].startswith("samples, unconditional (label left out), averaged weights")
    assert "conditional on label, averaged" in captions["reconstructions"]
    assert "unconditional (label left out)" in captions["trajectories"]

    evaluate([config.run, "--samples", "4"])
    evaluate([config.run, "--samples", "4", "--condition", "none"])
    said = capsys.readouterr().out
    assert " nats), conditional on label, fp32\n" in said
    assert " nats), unconditional (label left out), fp32\n" in said
    assert "warning" not in said
    with_label = report(config.run, "validation-elbo-4-ema")
    without = report(config.run, "validation-elbo-4-label-none-ema")
    assert (with_label["conditions"], without["conditions"]) == ({"label": "given"}, {"label": "none"})
    assert with_label["figures"]["evaluation/nats"] != without["figures"]["evaluation/nats"]
    with pytest.raises(TrainingError, match=r"^condition class: the model has label$"):
        evaluate([config.run, "--condition", "class=none"])


def picture_caption(run: str, name: str) -> str:
    return caption_of((Path(run) / f"pictures/{name}-{20 * BATCH:012d}.png").read_bytes())


def test_leaving_out_what_training_never_hid_is_said(config_file, capsys):
    config = load_config(str(config_file(model=CONDITIONAL | {"condition_dropout": 0.0})))
    train_rank(config)
    evaluate([config.run, "--condition", "none"])
    assert "warning: training never hid label: the model has not learned to do without" in capsys.readouterr().out


def test_images_without_labels_are_evaluated_only_without(config_file, digits, tmp_path):
    config = load_config(str(config_file(model=CONDITIONAL, trainer={"images": 2 * BATCH})))
    train_rank(config)
    example = [Example(np.zeros((8, 8, 1), np.uint8), None)] * 5
    (tmp_path / "bare").mkdir()
    write_tar(tmp_path / "bare/0.tar", ((f"{i}", one) for i, one in enumerate(example)))
    make_index([str(tmp_path / "bare"), "--levels", "17"])
    with pytest.raises(ConfigError, match=r"bare: the images have no labels; the training images have 10 classes"):
        evaluate([config.run, "--split", f"{tmp_path}/bare"])
    evaluate([config.run, "--split", f"{tmp_path}/bare", "--condition", "none"])


def test_conditional_bounds_rank_among_themselves(config_file, tmp_path, capsys):
    conditional, plain = config_file("conditional", model=CONDITIONAL), config_file("plain")
    out = tmp_path / "side-by-side"
    compare([str(conditional), str(plain), "--out", str(out), "--samples", "2", f"trainer.images={10 * BATCH}"])
    lines = [line.split(" | ")[:2] for line in (out / "table.md").read_text().splitlines() if line.startswith("| ")]
    assert lines[0] == ["| model", "conditional on"]
    assert sorted(lines[1:3]) == [["| conditional", "unconditional (label left out)"], ["| plain", "unconditional"]]
    assert lines[3:] == [["| conditional", "label"]]
    rows = json.loads((out / "table.json").read_text())
    assert [(row["model"], row["conditions"]) for row in rows] == [
        ("conditional", {"label": "given"}),
        ("conditional", {"label": "none"}),
        ("plain", {}),
    ]
    unconditional = [row["evaluation/nats"] for row in rows[1:]]
    assert (lines[1][0] == "| plain") == (unconditional[1] < unconditional[0])


def test_two_configurations_of_one_name_are_not_compared(config_file, tmp_path):
    path = config_file("same")
    (tmp_path / "other").mkdir()
    other = shutil.copy(path, tmp_path / "other/same.yaml")
    with pytest.raises(ConfigError, match=f"^{path} and {other} would both train in .*/out/same; rename one of the"):
        compare([str(path), str(other), "--out", f"{tmp_path}/out"])


def test_models_on_other_images_are_not_compared(config_file, digits):
    one = config_file("one")
    two = config_file("two", data={"shards": str(digits / "validation")})
    ended = call_job("compare", str(one), str(two))
    assert ended.status == 1
    assert "one and two have different data.shards" in ended.error


def test_rate_and_distortion_are_a_report_and_a_plot(config_file, capsys):
    network = {"kind": "mlp", "hidden": [16]}
    model = {"kind": "hvae", "latents": [4, 3], "encoder": network, "decoder": network, "hidden": [8]}
    config = load_config(str(config_file(model=model)))
    train_rank(config)
    evaluate([config.run, "--rate-distortion", "--images", "40"])
    (path,) = (Path(config.run) / "evaluations").glob("*rate-distortion.json")
    rows = json.loads(path.read_text())["rows"]
    assert [row["level"] for row in rows] == ["z2", "z1", "distortion"]
    assert rows[0]["bpd"] < rows[1]["bpd"] < rows[2]["bpd"]
    assert rows[-1]["mse"] == 0
    assert rows[0]["bpd"] + rows[0]["bpd_left"] == pytest.approx(rows[2]["bpd"])
    assert path.with_suffix(".png").stat().st_size > 1000
    assert "bpd so far" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="one at a time"):
        evaluate([config.run, "--rate-distortion", "--retrieval", "3"])
