"""Convolutional models through `fit`: in every memory format and sharding a resumed run is bitwise the straight one."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from torch import Tensor

from jobs.config.loading import load_config
from jobs.errors import ConfigError
from tests.jobs.conftest import BATCH
from tests.jobs.runs import assert_bitwise_equal, metrics, newest_tensors, training_rows
from tests.testbed.ranks import together
from tests.testbed.steps import StopAfter, train
from trainer.training.ema import Average

NETWORK = {"kind": "conv", "channels": [4, 6], "hidden": 16}
UNET = {"kind": "unet", "channels": 4, "multipliers": [1, 2], "blocks": 1, "attention": [4], "heads": 2}
MODELS = {
    "vae": {"kind": "vae", "latent": 4, "encoder": NETWORK, "decoder": NETWORK},
    "unet": {"kind": "diffusion", "denoiser": {"network": UNET, "embedding": 16}, "sampling": {"steps": 2}},
}
SETTINGS = {
    "contiguous": {"channels_last": False},
    "channels_last": {"channels_last": True},
    "fsdp": {"sharding": "fsdp"},
    "bf16": {"channels_last": True, "precision": "bf16"},
}


def run(config_file, name, model, setting, **trainer):
    size = {"images": 6 * BATCH, "evaluate_every": 6 * BATCH, "log_every": BATCH, "pictures": 0}
    optim = {"posthoc": 6 * BATCH}
    return config_file(name, model=MODELS[model], trainer=size | SETTINGS[setting] | trainer, optim=optim)


class StridesBefore(StopAfter):
    """Stops after some steps; each time it checks that what the optimiser pairs element by element has equal strides.

    It finds the optimiser and the averages of the run that is alive among the objects of the process.
    """

    def __init__(self, steps: int, channels_last: bool):
        super().__init__(steps)
        self.channels_last, self.kernels = channels_last, 0

    def save(self) -> bool:
        gc.unfreeze()  # what the loop has frozen is not listed
        gc.collect()  # of the run before this one in the same process
        alive = gc.get_objects()
        (optimizer,) = (each for each in alive if isinstance(each, torch.optim.AdamW))
        averages = [each for each in alive if isinstance(each, Average)]
        assert len(averages) == 3  # the exponential one and two power functions
        for parameter, state in optimizer.state.items():
            beside = [parameter.grad, state["exp_avg"], state["exp_avg_sq"]]
            beside += [a.average[n] for a in averages for n, p in a.parameters.items() if p is parameter]
            assert len(beside) == 6
            assert {_strides(value) for value in beside} == {_strides(parameter)}
            if parameter.ndim == 4 and min(parameter.shape[1:]) > 1:
                self.kernels += 1
                assert parameter.is_contiguous() != self.channels_last
        return super().save()


def _strides(value: Tensor) -> tuple[int, ...]:
    return value.stride()


def stop_and_resume(straight: Path, broken: Path, channels_last: bool) -> None:
    """Train one run to its end, and the other with a stop after three steps."""
    train(straight)
    for steps in (3, 1 << 60):
        requests = StridesBefore(steps, channels_last)
        train(broken, requests=requests)
        assert requests.kernels


@pytest.mark.parametrize(
    ("model", "setting", "ranks"),
    [
        ("vae", "contiguous", 1),
        ("unet", "channels_last", 1),
        ("unet", "contiguous", 2),
        ("unet", "channels_last", 2),
        ("vae", "channels_last", 2),
        ("unet", "fsdp", 2),
        ("unet", "bf16", 1),
    ],
)
def test_a_stopped_run_goes_on_bitwise(config_file, model, setting, ranks):
    straight, broken = (run(config_file, name, model, setting) for name in ("straight", "broken"))
    together(ranks, stop_and_resume, straight, broken, setting in ("channels_last", "bf16"))
    runs = [load_config(str(path)).run for path in (straight, broken)]
    assert_bitwise_equal(newest_tensors(runs[0]), newest_tensors(runs[1]))
    assert metrics(runs[0]) == metrics(runs[1])
    assert [row["images"] for row in training_rows(runs[0])] == [BATCH * n for n in range(1, 7)]


def test_the_memory_format_may_change_on_resume(config_file):
    """The bounds are then those of a run that never changed, to float tolerance: kernels add in another order."""
    straight, moved = (run(config_file, name, "unet", "contiguous") for name in ("straight", "moved"))
    train(straight)
    train(moved, 3)
    train(moved, None, "trainer.channels_last=true")
    rows, theirs = (metrics(load_config(str(path)).run) for path in (straight, moved))
    for row, their in zip(rows, theirs, strict=True):
        assert their == pytest.approx(row, rel=1e-3)


def test_channels_last_is_refused_under_fsdp(config_file):
    path = run(config_file, "run", "vae", "fsdp", channels_last=True)
    with pytest.raises(ConfigError, match=r"channels_last: true needs sharding: ddp; FSDP2 shards contiguous"):
        load_config(str(path))
