"""trainer.micro_batch: auto, and the line of a run that is out of memory."""

from __future__ import annotations

import re

import pytest
import torch

from cluster.storage.storage import Storage
from jobs.config.loading import config_of, load_config
from jobs.run import micro_batch
from jobs.run.training import train_rank
from tests.jobs.conftest import BATCH
from tests.jobs.runs import assert_bitwise_equal, newest_tensors, training_rows
from tests.testbed.ranks import together
from tests.testbed.steps import train
from trainer.errors import TrainingError
from trainer.models.vae import Vae

PER_IMAGE = re.compile(r"predicted: ([\d.]+) KiB of state and ([\d.]+) KiB per image")


def memory_for(images: int, config, monkeypatch, capsys) -> None:
    """Pretend that the machine has the memory that the run predicts for `images` images."""
    train_rank(config.model_copy(update={"run": f"{config.run}-probe"}))
    state, each = (1024 * float(size) for size in PER_IMAGE.search(capsys.readouterr().out).groups())
    free = (state + (images + 0.5) * each) / (1 - micro_batch.FREE)
    monkeypatch.setattr(micro_batch, "free_memory", lambda device: int(free))


def test_what_fits_is_chosen_in_equal_parts_and_written_into_the_run(config_file, monkeypatch, capsys):
    config = load_config(str(config_file(trainer={"micro_batch": "auto", "images": 4 * BATCH})))
    memory_for(25, config, monkeypatch, capsys)
    train_rank(config)
    assert config_of(Storage(config.run)).trainer.micro_batch == 22  # three parts of 64
    assert {row["train/micro_batch"] for row in training_rows(config.run)} == {22}
    assert "trainer.micro_batch: 22 images at once" in capsys.readouterr().out
    fixed = load_config(str(config_file("fixed", trainer={"micro_batch": 22, "images": 4 * BATCH})))
    train_rank(fixed)
    assert_bitwise_equal(newest_tensors(config.run), newest_tensors(fixed.run))


def fail_above(images: int, monkeypatch) -> None:
    forward = Vae.forward

    def failing(self, batch, *others):
        if len(batch) > images and batch.device.type != "meta" and not hasattr(batch, "fake_mode"):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, batch, *others)

    monkeypatch.setattr(Vae, "forward", failing)


def test_half_is_tried_where_the_prediction_was_too_large(config_file, monkeypatch, capsys):
    config = load_config(
        str(config_file(trainer={"micro_batch": "auto", "images": 4 * BATCH, "evaluate_every": 10**6}))
    )
    fail_above(20, monkeypatch)
    monkeypatch.setattr("jobs.run.data.RunData.validation", lambda self: None)
    train_rank(config)
    assert {row["train/micro_batch"] for row in training_rows(config.run)} == {16}
    assert "out of memory; trying 32" in capsys.readouterr().out


def test_nothing_fits(config_file, monkeypatch):
    monkeypatch.setattr(micro_batch, "free_memory", lambda device: 1000)
    with pytest.raises(TrainingError, match=r"^trainer.micro_batch: auto: not one image fits: [\d.]+ KiB of state"):
        train_rank(load_config(str(config_file(trainer={"micro_batch": "auto"}))))


def test_ranks_agree_on_the_micro_batch_under_fsdp(config_file):
    path = config_file(trainer={"micro_batch": "auto", "sharding": "fsdp", "images": 4 * BATCH})
    together(2, train, path)
    assert config_of(Storage(load_config(str(path)).run)).trainer.micro_batch == BATCH // 2


def test_a_run_out_of_memory_says_what_would_fit(config_file, monkeypatch):
    config = load_config(str(config_file()))
    fail_above(20, monkeypatch)
    monkeypatch.setattr(micro_batch, "free_memory", lambda device: 200_000)
    with pytest.raises(TrainingError) as failure:
        train_rank(config)
    found = re.fullmatch(
        r"out of memory: 64 images at once take about \d+ KiB of 195 KiB; trainer.micro_batch=(\d+) would fit by "
        r"prediction, auto chooses it",
        str(failure.value),
    )
    assert found, failure.value
    assert 0 < int(found[1]) < 64
