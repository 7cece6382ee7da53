"""Every family of models through `fit`: in bfloat16, compiled."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from jobs.config.loading import load_config
from tests.jobs.conftest import BATCH
from tests.jobs.runs import metrics
from tests.testbed.ranks import together
from tests.testbed.steps import train
from tests.trainer.models import ALL_MODELS


def run(config_file, name, model, **trainer):
    """Four steps of a model of ALL_MODELS, for the digits whatever images it is for there."""
    config = dict(ALL_MODELS[model][1])
    if config.get("likelihood") == {"kind": "bernoulli"}:
        del config["likelihood"]
    size = {"images": 4 * BATCH, "evaluate_every": 4 * BATCH, "log_every": BATCH, "pictures": 0}
    return config_file(name, model=config, trainer=size | trainer)


def train_all(*paths: Path) -> None:
    for path in paths:
        train(path)


def test_every_family_trains_in_bfloat16_as_in_float32(config_file):
    """The bounds of the first steps, to the rounding of bfloat16; the held-out set is evaluated in float32 by both."""
    runs = {
        precision: [run(config_file, f"{model}-{precision}", model, precision=precision) for model in ALL_MODELS]
        for precision in ("fp32", "bf16")
    }
    for paths in runs.values():  # a process has one precision
        together(1, train_all, *paths)
    for one, other in zip(*runs.values(), strict=True):
        rows, halves = (metrics(load_config(str(path)).run) for path in (one, other))
        assert len(rows) == len(halves) == 5
        for row, half in zip(rows, halves, strict=True):
            bound = "train/nats" if "train/nats" in row else "validation/nats"
            assert half[bound] == pytest.approx(row[bound], rel=0.02), other.stem
        assert any(row["train/nats"] != half["train/nats"] for row, half in zip(rows[:4], halves, strict=False))


def compiled(straight: Path, broken: Path) -> None:
    """The compiler's tracing and differentiation; the kernels that it would make take minutes."""
    torch.compiler.set_default_backend("aot_eager")
    train(straight)
    train(broken, 2)
    train(broken)


def test_a_compiled_run_is_the_run_as_it_is_written(config_file):
    """Under autocast, with an evaluation in float32 and a stop on the way."""
    paths = [run(config_file, name, "vae-conv", precision="bf16", compile=name != "plain") for name in ("a", "b")]
    together(1, compiled, *paths)
    plain = run(config_file, "plain", "vae-conv", precision="bf16")
    together(1, train, plain)
    expected, straight, broken = (metrics(load_config(str(path)).run) for path in (plain, *paths))
    assert straight == broken
    for row, compiled_row in zip(expected, straight, strict=True):
        assert compiled_row == pytest.approx(row, rel=0.01)
