"""What may change when a run is resumed, and what is said about it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import datasets.config
import trainer.config
from datasets.order.versions import NEWEST
from jobs.config.loading import load_config
from jobs.config.resolved import ResolvedRun, resolve
from jobs.config.resume import check_resume, completed, continued, difference, fingerprint, fixed_settings
from jobs.config.schema import RunConfig
from jobs.run.training import train_rank
from tests.jobs.conftest import BATCH
from tests.testbed.processes import REPOSITORY
from trainer.errors import TrainingError

SMALL = {"run": "runs/a", "model": {"kind": "vae"}, "data": {"shards": "data/a", "validation": "data/v"}}


def small(**sections: object) -> RunConfig:
    return RunConfig.model_validate(SMALL | sections)


def changed(config: RunConfig, key: str, value: object) -> RunConfig:
    values = config.model_dump()
    *path, last = key.split(".")
    section = values
    for part in path:
        section = section[part]
    assert section[last] != value, "no change"
    section[last] = value
    return RunConfig.model_validate(values)


FREE = {
    "run": "s3://other/place",
    "data.shards": "s3://copy/of/a",
    "data.validation": "data/b",
    "data.index": "elsewhere",
    "data.columns": ["elsewhere"],
    "data.workers": 3,
    "data.memory": 1,
    "data.cache": 1,
    "data.disk_cache": {"folder": "kept"},
    "data.on_bad": "quarantine",
    "data.accept_changes": True,
    "data.bad_share": 0.5,
    "optim.lr": 5.0,
    "optim.posthoc": 5,
    "optim.clip": 5.0,
    "trainer.images": 5,
    "trainer.micro_batch": 5,
    "trainer.precision": "bf16",
    "trainer.channels_last": True,
    "trainer.threads": 5,
    "trainer.sharding": "fsdp",
    "trainer.hang_timeout": 5.0,
    "trainer.compile": True,
    "trainer.peak_flops": 5.0,
    "trainer.profile": 5,
    "trainer.log_every": 5,
    "trainer.evaluate_every": 5,
    "trainer.checkpoint_every": 5,
    "trainer.patience": 6,
    "trainer.pictures": 5,
    "trainer.checkpoints": {"keep": 5},
    "trainer.guard": {"factor": 5.0},
    "tracking.mode": "off",
    "tracking.project": "x",
    "ray.workers": (1, 5),
    "ray.max_failures": 5,
}
FIXED = {
    "seed": 5,
    "init_from": "runs/b",
    "model.latent": 5,
    "model.encoder": {"kind": "mlp", "hidden": [5]},
    "data.streams": 4,
    "data.window": 5,
    "data.transform": {"size": [4, 4]},
    "optim.schedule": "constant",
    "optim.final_lr": 0.5,
    "optim.warmup": 5,
    "optim.betas": (0.5, 0.5),
    "optim.eps": 0.5,
    "optim.weight_decay": 0.5,
    "optim.ema": 5,
    "trainer.batch": 64,
}


@pytest.mark.parametrize(("key", "value"), FREE.items())
def test_these_settings_may_change(key: str, value: object) -> None:
    config = small()
    assert difference(fixed_settings(config), fixed_settings(changed(config, key, value))) is None


@pytest.mark.parametrize(("key", "value"), FIXED.items())
def test_every_other_setting_is_fixed_and_the_difference_is_named(key: str, value: object) -> None:
    config = small()
    message = difference(fixed_settings(config), fixed_settings(changed(config, key, value)))
    assert message is not None
    assert message.startswith(key)
    assert message.endswith(" here")
    assert " in the run and " in message


def test_the_sets_of_a_mixture_may_be_copies_but_not_their_weights() -> None:
    def mixed(*sets: tuple[str, int]) -> RunConfig:
        mixture = [{"shards": url, "weight": weight} for url, weight in sets]
        return small(data={"mixture": mixture})

    saved = fixed_settings(mixed(("a", 1), ("b", 2)))
    copied, weighted = mixed(("s3://x/a", 1), ("s3://x/b", 2)), mixed(("a", 1), ("b", 3))
    assert difference(completed(saved, copied), fixed_settings(copied)) is None
    assert "data.mixture" in str(difference(completed(saved, weighted), fixed_settings(weighted)))
    old = saved | {"data.mixture": [{"shards": url, "index": "", "weight": w} for url, w in (("a", 1), ("b", 2))]}
    assert difference(completed(old, copied), fixed_settings(copied)) is None


def test_the_mark_of_the_data_section_is_the_trainers() -> None:
    assert datasets.config.MayChange.json_schema_extra == trainer.config.MayChange.json_schema_extra


def test_the_difference_says_both_values() -> None:
    one, other = fixed_settings(small()), fixed_settings(changed(small(), "optim.ema", 5))
    assert difference(one, other) == "optim.ema is 20000 in the run and 5 here"
    batch = {**one, "trainer.batch": 7, "data.streams": 7}
    assert difference(one, batch).startswith("trainer.batch is ")  # from which data.streams follows
    assert difference(one, {**one, "new": 3}) == "new is not set in the run and 3 here"


def test_a_fingerprint_that_went_through_json_is_the_same() -> None:
    config = small(optim={"lr": 0.1, "betas": [0.1, 1 / 3], "eps": 1e-300})
    assert difference(json.loads(json.dumps(fixed_settings(config))), fixed_settings(config)) is None


def test_the_order_of_the_keys_makes_no_difference() -> None:
    one, other = small(seed=1, optim={"lr": 1, "ema": 3}), small(optim={"ema": 3, "lr": 1}, seed=1)
    assert fixed_settings(one) == fixed_settings(other)


# ---- resuming


@pytest.fixture
def resolved(config_file: Callable[..., Path]) -> Callable[..., ResolvedRun]:
    """The resolved run of the tiny configuration with overrides, on a machine with or without a GPU."""
    path = str(config_file(optim={"schedule": "cosine"}))

    def make(*overrides: str, gpu: bool = False) -> ResolvedRun:
        return resolve(load_config(path, overrides), gpu)

    return make


def saved(run: ResolvedRun) -> dict[str, Any]:
    """The fingerprint as a checkpoint returns it."""
    return json.loads(json.dumps(fingerprint(run)))


def test_nothing_is_said_about_the_same_settings(resolved) -> None:
    assert check_resume(resolved(), saved(resolved()), 10 * BATCH) == []
    assert check_resume(resolved("ray.workers=4", "tracking.project=x"), saved(resolved()), 10 * BATCH) == []


def test_each_changed_setting_is_reported(resolved) -> None:
    run = resolved("optim.lr=0.5", "trainer.compile=true", "optim.posthoc=64", "data.on_bad=quarantine")
    assert check_resume(run, saved(resolved()), 10 * BATCH) == [
        "data.on_bad changes from 'stop' to 'quarantine'",
        "optim.lr changes from 0.002 to 0.5",
        "optim.posthoc changes from 0 to 64",
        "trainer.compile changes from False to True",
    ]


def test_a_larger_budget_says_what_it_does_to_the_learning_rate(resolved) -> None:
    run = resolved(f"trainer.images={40 * BATCH}")
    assert check_resume(run, saved(resolved()), 20 * BATCH) == [
        "trainer.images changes from 1280 to 2560",
        "the learning rate rises from 2e-05 to 0.00101: its cosine now ends after 2,560 images, not 1,280",
    ]


def test_another_machine_does_not_change_the_precision_silently(resolved) -> None:
    on_gpu = saved(resolved(gpu=True))
    with pytest.raises(
        TrainingError,
        match=r"run: trainer\.precision is bf16 in the run, and auto means fp32 on this machine; set "
        r"trainer\.precision=bf16 to keep it, or trainer\.precision=fp32 to change it$",
    ):
        check_resume(resolved(), on_gpu, 0)
    assert check_resume(resolved("trainer.precision=bf16"), on_gpu, 0) == []
    assert check_resume(resolved("trainer.precision=fp32"), on_gpu, 0) == [
        "trainer.precision changes from 'bf16' to 'fp32'"
    ]
    assert check_resume(resolved(gpu=True), on_gpu, 0) == []


def test_other_settings_and_other_images_are_refused(resolved) -> None:
    with pytest.raises(TrainingError, match=r"run: seed is 0 in the run and 1 here; use another run folder \(run="):
        check_resume(resolved("seed=1"), saved(resolved()), 0)
    other = saved(resolved()) | {"data": "0123"}
    with pytest.raises(TrainingError, match="run: was started on other images"):
        check_resume(resolved(), other, 0)


# ---- runs of older versions: 6f6f0ee kept these with the fixed settings


def old(run: ResolvedRun, **settings: object) -> dict[str, Any]:
    before = {"trainer.precision": "auto", "trainer.compile": False, "optim.posthoc": 0, "data.on_bad": "stop"}
    return {"config": fixed_settings(run.config) | before | settings, "data": run.index.fingerprint}


def test_a_run_keeps_the_version_of_its_order(resolved) -> None:
    run = resolved()
    assert run.order_version == NEWEST == continued(run, saved(run)).order_version
    before = continued(run, old(run))
    assert before.order_version == 1
    assert saved(before)["config"]["data.order_version"] == 1
    assert check_resume(run, saved(before), 0) == []
    assert continued(run, saved(before)) == before


def test_a_run_with_an_order_of_a_newer_release_is_refused(resolved) -> None:
    newer = saved(replace(resolved(), order_version=NEWEST + 1))
    with pytest.raises(TrainingError, match=r"started by a newer release: data\.order_version is 3 in the run"):
        check_resume(resolved(), newer, 0)


def test_a_run_of_an_older_version_may_be_resumed(resolved) -> None:
    for gpu in (False, True):  # nobody knows what `auto` meant
        assert check_resume(resolved(gpu=gpu), old(resolved()), 10 * BATCH) == []
    run = resolved("trainer.compile=true", "optim.posthoc=64")
    assert check_resume(run, old(resolved()), 10 * BATCH) == [
        "optim.posthoc changes from 0 to 64",
        "trainer.compile changes from False to True",
    ]


def test_a_fingerprint_of_an_older_version_gets_the_defaults_of_newer_settings() -> None:
    config = load_config(str(REPOSITORY / "jobs/configs/digits-vae.yaml"))
    mine = fixed_settings(config)
    older = {key: value for key, value in mine.items() if key not in ("optim.eps", "model.kl_warmup")}
    assert difference(older, mine) is not None
    assert difference(completed(older, config), mine) is None
    other = load_config(str(REPOSITORY / "jobs/configs/digits-vae.yaml"), ["optim.eps=0.1"])
    assert difference(completed(older, other), fixed_settings(other)) == "optim.eps is 1e-08 in the run and 0.1 here"
    assert difference(completed(older | {"optim.gone": 3}, config), mine) is not None


# ---- through a whole run


def test_a_run_continues_with_compile_posthoc_and_quarantine_turned_on(resolved, capsys) -> None:
    run = resolved(f"trainer.images={10 * BATCH}", "optim.schedule=constant")
    train_rank(run.config)
    more = ["optim.schedule=constant", f"optim.posthoc={4 * BATCH}", "data.on_bad=quarantine"]
    again = resolved(*more)
    assert train_rank(again.config).finished
    said = capsys.readouterr().out
    assert "trainer.images changes from 640 to 1280" in said
    assert "optim.posthoc: averaging starts after 640 images" in said
