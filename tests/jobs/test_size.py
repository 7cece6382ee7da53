"""What `jobs.submit --dry-run` says must be what a run then takes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cluster.storage.storage import Storage
from datasets.shards.index import Index
from jobs.config.resolved import resolve
from jobs.config.schema import RunConfig, load_config
from jobs.errors import ConfigError
from jobs.run.training import train_rank
from jobs.size import report
from tests.jobs.conftest import BATCH
from trainer.checkpoints.lineage import Lineage
from trainer.images import ImageSpec
from trainer.noise import Noise
from trainer.tracking.flops import measure


@pytest.fixture
def config(config_file: Callable[..., Path]) -> RunConfig:
    return load_config(str(config_file()))


def megabytes(text: str, name: str) -> float:
    """A size in a report, in bytes."""
    found = re.search(rf"{name} *(?:about )?([\d.]+) (bytes|KiB|MiB|GiB)", text)
    assert found, text
    return float(found[1]) * 1024 ** ["bytes", "KiB", "MiB", "GiB"].index(found[2])


def test_the_checkpoint_is_as_large_as_was_said(config: RunConfig) -> None:
    said = megabytes(report(resolve(config)), "checkpoint ")
    train_rank(config)
    lineage = Lineage(Storage(config.run))
    newest = next(iter(lineage.history()))
    written = sum(entry.size for entry in lineage.run.list(f"checkpoints/{newest.name}"))
    assert said <= written < said + 40_000  # names, shapes and the JSON files come on top
    assert said > 0.5 * written


def test_images_steps_and_epochs_are_those_of_the_set(config: RunConfig) -> None:
    text = report(resolve(config))
    images = Index.of(config.data).images
    assert f"{images:,} an epoch; {20 * BATCH:,} in all, {20 * BATCH / images:.3g} epochs" in text
    assert f"20 of {BATCH} images; 1 rank, at most {BATCH} images a rank" in text


def test_the_parameters_are_counted(config: RunConfig) -> None:
    train_rank(config.model_copy(update={"trainer": config.trainer.model_copy(update={"images": BATCH})}))
    import trainer

    parameters = sum(value.numel() for value in trainer.load(config.run).parameters())
    assert f"{parameters:,} trained" in report(resolve(config))


def test_the_weights_gradients_moments_and_averages_add_up(config: RunConfig) -> None:
    text = report(resolve(config))
    weights = megabytes(text, "weights")
    assert megabytes(text, "gradients") == megabytes(text, "averages") == weights
    assert megabytes(text, "optimiser") == pytest.approx(2 * weights, rel=0.01)
    parts = [megabytes(text, name) for name in ("weights", "gradients", "optimiser", "averages", "activations")]
    assert megabytes(text, "memory ") == pytest.approx(sum(parts), rel=0.02)


def test_more_ranks_and_smaller_micro_batches_take_less_memory_each(config_file: Callable[..., Path]) -> None:
    path = str(config_file())
    one, four, micro = (
        megabytes(report(resolve(load_config(path, overrides))), "activations")
        for overrides in ([], ["ray.workers=4"], ["trainer.micro_batch=8"])
    )
    assert four == pytest.approx(one / 4, rel=0.02)
    assert micro == pytest.approx(one / 8, rel=0.02)


def test_the_estimate_is_what_autograd_keeps_and_the_flops_are_those_of_the_matrices() -> None:
    spec = ImageSpec(1, 8, 8, 17)
    network = {"kind": "mlp", "hidden": [64]}
    values = {"kind": "vae", "latent": 4, "encoder": network, "decoder": network}
    config = RunConfig.model_validate({"run": "r", "model": values, "data": {"shards": "s"}})
    model = config.model.build(spec)
    kept: dict[int, int] = {}
    own = {value.data_ptr() for value in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        noise = Noise(0, "train", torch.arange(32), 32)
        model(torch.zeros(32, 1, 8, 8, dtype=torch.uint8), None, noise, torch.zeros(())).loss.sum()

    measured = measure(model, torch.float32)
    assert 32 * measured.activations == pytest.approx(sum(kept.values()), rel=0.05)
    matrices = sum(value.numel() for value in model.parameters() if value.ndim == 2)
    first = 64 * 64  # the images need no gradient: one product of three is saved in the first layer
    assert measured.flops == pytest.approx(6 * matrices - 2 * first, rel=0.01)


def test_a_model_is_built_for_the_images_as_the_run_takes_them(config: RunConfig, config_file) -> None:
    assert resolve(config).build_model().spec.shape == (1, 8, 8)
    smaller = load_config(str(config_file()), ["data.transform.size=[4, 4]"])
    assert resolve(smaller).build_model().spec.shape == (1, 4, 4)


def test_a_model_that_does_not_fit_the_images_is_told_in_one_line(config_file: Callable[..., Path]) -> None:
    path = config_file(model={"likelihood": {"kind": "bernoulli"}})
    with pytest.raises(ConfigError, match=r"^model\."):
        resolve(load_config(str(path))).build_model()
