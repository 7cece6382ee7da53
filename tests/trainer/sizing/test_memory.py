"""The predicted peak of a rank against the bytes that PyTorch's allocator handed out in real steps of real ranks."""

from __future__ import annotations

import gc
import statistics

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from tests.testbed.ranks import together
from tests.trainer.models import ALL_MODELS, build
from trainer.distributed.device import make_accelerator
from trainer.distributed.ranks import all_gather_object, shutdown
from trainer.distributed.sharding import Parallel
from trainer.images import ImageSpec
from trainer.models import Model
from trainer.models.diffusion.model import DiffusionConfig
from trainer.models.example import example
from trainer.networks.unit import units
from trainer.sizing.memory import Pass, peak_memory
from trainer.training.ema import Ema
from trainer.training.guard import Guard, GuardConfig
from trainer.training.optimizer import OptimConfig, adamw
from trainer.training.recomputation import recompute

IMAGES = 32


def transformer(again: bool = False) -> Model:
    network = {"kind": "dit", "width": 128, "depth": 4, "heads": 2}
    denoiser = {"network": network, "prediction": {"kind": "v"}, "embedding": 128}
    model = DiffusionConfig.model_validate({"kind": "diffusion", "denoiser": denoiser}).build(ImageSpec(3, 16, 16, 256))
    for unit in units(model) if again else ():
        recompute(unit)
    return model


def _measure(at_once: Pass, again: bool, expected: int) -> None:
    """The steps that the prediction traces, for real."""
    torch.set_num_threads(1)
    accelerator = make_accelerator("bf16" if at_once.bf16 else "fp32")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        model = transformer(again)
        parallel = Parallel(model, accelerator, *(("fsdp", at_once.shard_over) if at_once.shard_over else ("ddp",)))
        optimizer, average = adamw(model, OptimConfig()), Ema(model, 1)
        guard, parameters = Guard(GuardConfig(), torch.device("cpu")), list(model.parameters())
        inputs = example(model, at_once.images)
        for _ in range(3):
            gc.collect()
            parallel(*inputs).loss.sum().backward()
            guard.step(optimizer, parameters, None)
            average.update(IMAGES, IMAGES)
            optimizer.zero_grad(set_to_none=True)
    level = peak = 0
    for event in profiled.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            level += event.nbytes()
            peak = max(peak, level)
    peaks = all_gather_object(peak, None)
    assert len(peaks) == at_once.ranks
    assert expected == pytest.approx(statistics.mean(peaks), rel=0.1), peaks
    shutdown()


@pytest.mark.parametrize(
    ("ranks", "over", "bf16", "again"),
    [(2, None, False, False), (2, 2, True, False), (4, 4, False, True), (4, 2, False, False)],
    ids=["ddp", "bf16", "recomputed", "two copies"],
)
def test_the_predicted_peak_is_what_ranks_allocate(ranks, over, bf16, again):
    at_once = Pass(ranks, over, IMAGES, bf16)
    together(ranks, _measure, at_once, again, peak_memory(lambda: transformer(again), at_once, OptimConfig()).total)


FAST = ("vae-mlp", "hvae", "ladder-mlp", "diffusion-dit")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in FAST else pytest.mark.slow) for n in ALL_MODELS])
def test_every_family_is_traced(name):
    spec = ALL_MODELS[name][0]
    whole = peak_memory(lambda: build(name), Pass(1, None, 4, False), OptimConfig())
    parts = peak_memory(lambda: build(name), Pass(8, 4, 4, True), OptimConfig(posthoc=1))
    weights = sum(value.nbytes for value in build(name).state_dict().values())
    assert weights <= whole.weights < weights + 10_000  # buffers that are not saved
    assert whole.moments == pytest.approx(2 * weights, rel=0.01, abs=1000)
    assert whole.averages == pytest.approx(weights, rel=0.01)
    assert parts.weights < 0.5 * whole.weights + 10_000
    assert parts.averages < 3 * 0.3 * whole.averages + 10_000
    assert whole.activations > 4 * spec.dimensions
    assert whole.gathered == whole.buckets == 0 < parts.gathered + parts.buckets
