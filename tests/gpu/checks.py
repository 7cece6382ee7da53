"""What must hold on a GPU. Each check runs on any device, so that the normal suite rehearses it on the CPU."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from tests.gpu.runs import Trained, Waves, build, train
from tests.trainer.models import ALL_MODELS
from trainer.distributed.device import full_precision, make_accelerator
from trainer.distributed.sharding import gathered, gathered_tensor, local
from trainer.noise import Noise
from trainer.sizing.memory import Pass, peak_memory
from trainer.training.evaluation import evaluate
from trainer.training.optimizer import OptimConfig
from trainer.training.state import TrainState

# Convolutions without GroupNorm, with it, and depthwise; attention; vectors.
COMPILED = ("vae-conv", "diffusion-unet")


def check_family(name: str, device: torch.device, folder: Path, steps: int, channels_last: bool = False) -> str:
    """Train, stop, resume; evaluate in float32; sample. Returns a line for the screen."""
    spec, config = ALL_MODELS[name]
    accelerator = make_accelerator("auto")
    assert accelerator.device.type == device.type
    straight, stopped, resumed = (
        train(build(spec, config), accelerator, folder / run, steps, stop=stop, channels_last=channels_last)
        for run, stop in (("straight", None), ("broken", steps // 2), ("broken", None))
    )
    assert stopped.outcome.images == steps // 2 * 32
    assert resumed.rows[0]["images"] == (steps // 2 + 1) * 32
    _check_strides(resumed.state)
    _check_equal(straight, resumed, exactly=device.type == "cpu")
    model, data = resumed.state.model, Waves(spec, 32, device)
    with resumed.state.ema.applied(), torch.no_grad():
        evaluation = evaluate(model, data.validation(), seed=0, draws=2)
        assert math.isfinite(evaluation.nats)
        assert evaluation.precision == "fp32"
        with full_precision(device):
            made = model.sample(Noise(0, "sample", torch.arange(4, device=device)))
        assert made.shape == (4, *spec.shape)
        assert int(made.max()) < spec.levels
    first, last = straight.rows[0]["train/nats"], resumed.rows[-2]["train/nats"]
    return f"{first:.1f} -> {last:.1f} nats in training, {evaluation}"


def _check_strides(state: TrainState) -> None:
    """Fused optimisers pair the elements of these tensors in memory order."""
    for name, parameter in state.model.named_parameters():
        if not parameter.requires_grad:
            continue
        moments = state.optimizer.state[parameter]
        averages = [state.ema, *(state.posthoc.averages if state.posthoc else [])]
        beside = [parameter.grad, moments["exp_avg"], moments["exp_avg_sq"], *(a.average[name] for a in averages)]
        assert {_stride(value) for value in beside if value is not None} == {_stride(parameter)}, name


def _stride(value: Tensor) -> tuple[int, ...]:
    return local(value.detach()).stride()


def _check_equal(straight: Trained, resumed: Trained, exactly: bool) -> None:
    """The bound of every row: the same figures on the CPU; close ones on a GPU, whose sums have no fixed order."""
    for row, other in zip(straight.rows[-len(resumed.rows) :], resumed.rows, strict=True):
        bound = "train/nats" if "train/nats" in row else "validation/nats"
        assert row["images"] == other["images"]
        if exactly:
            assert row[bound] == other[bound]
        else:
            assert abs(row[bound] - other[bound]) < 0.05 * abs(row[bound]) + 1


def check_fsdp(name: str, device: torch.device, folder: Path, steps: int) -> str:
    """FSDP2 on a group of one rank (the caller sets RANK and its friends): train, stop, resume, sample."""
    spec, config = ALL_MODELS[name]
    accelerator = make_accelerator("auto")
    alone = train(build(spec, config), accelerator, folder / "ddp", steps)
    how = {"sharding": "fsdp", "activation_checkpointing": {"every": 2}}
    train(build(spec, config), accelerator, folder / "fsdp", steps, stop=steps // 2, **how)
    sharded = train(build(spec, config), accelerator, folder / "fsdp", steps, **how)
    model = sharded.state.model
    assert all(type(parameter).__name__ == "DTensor" for parameter in model.parameters())
    _check_strides(sharded.state)
    _check_equal(alone, sharded, exactly=False)
    with torch.no_grad(), gathered(model):
        model.sample(Noise(0, "sample", torch.arange(4, device=device)))
    assert all(gathered_tensor(value).isfinite().all() for value in sharded.state.ema.average.values())
    return "equal to DDP"


def check_recomputation(name: str, device: torch.device, folder: Path, steps: int) -> str:
    """Recomputed units have the bounds of units whose activations are kept, and on a GPU a lower peak."""
    spec, config = ALL_MODELS[name]
    accelerator = make_accelerator("auto")
    found = {}
    for policy in ("none", "all"):
        run = train(build(spec, config), accelerator, folder / policy, steps, size=128, activation_checkpointing=policy)
        found[policy] = run
    _check_equal(found["none"], found["all"], exactly=device.type == "cpu")
    peaks = [max(row["memory/peak"] for row in run.rows if "memory/peak" in row) for run in found.values()]
    assert device.type == "cpu" or peaks[1] < peaks[0], peaks
    return "equal to kept activations"


def check_memory(name: str, device: torch.device, folder: Path, steps: int) -> str:
    """The predicted peak is within 10% of what the allocator of a GPU gave out; on a CPU it is only predicted."""
    spec, config = ALL_MODELS[name]
    size = 1024
    at_once, optim = Pass(1, None, size, device.type == "cuda"), OptimConfig(posthoc=size * 3)
    predicted = peak_memory(lambda: build(spec, config), at_once, optim).total
    if device.type == "cpu":
        return f"predicted {predicted / 2**20:.0f} MiB"
    accelerator = make_accelerator("auto")
    torch.cuda.reset_peak_memory_stats()
    train(build(spec, config), accelerator, folder / "run", 3, size=size)
    measured = torch.cuda.max_memory_allocated()
    assert abs(predicted - measured) < 0.1 * measured, (predicted, measured)
    return f"predicted {predicted / 2**20:.0f} MiB, measured {measured / 2**20:.0f} MiB"


def check_compile(name: str, device: torch.device, folder: Path, steps: int) -> str:
    """A compiled run has the bounds of the run as it is written."""
    spec, config = ALL_MODELS[name]
    accelerator = make_accelerator("auto")
    plain = train(build(spec, config), accelerator, folder / "plain", steps)
    compiled = train(build(spec, config), accelerator, folder / "compiled", steps, compile=True)
    _check_equal(plain, compiled, exactly=False)
    return "equal to eager"


def check_noise(device: torch.device) -> str:
    """Uniform values are the CPU's to the bit; normal ones to the rounding of sine and logarithm."""
    here, there = (Noise(3, "train", torch.arange(5, 1000, 7, device=where), 128) for where in ("cpu", device))
    for name in ("eps", "z1"):
        assert torch.equal(here.uniform(name, (3, 5)), there.uniform(name, (3, 5)).cpu())
        torch.testing.assert_close(here.normal(name, (3, 5)), there.normal(name, (3, 5)).cpu(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(here.stratified(name), there.stratified(name).cpu(), rtol=0, atol=1e-6)
    return "equal to the CPU's"


def check_full_precision(device: torch.device) -> str:
    """Convolutions and matrix products of float32 have the error of float32, also after `tf32` was allowed."""
    torch.manual_seed(0)
    x, weight = torch.randn(8, 64, 16, 16), torch.randn(64, 64, 3, 3)
    exact = torch.nn.functional.conv2d(x.double(), weight.double(), padding=1)
    make_accelerator("fp32")
    found = torch.nn.functional.conv2d(x.to(device), weight.to(device), padding=1)
    error = ((found.cpu().double() - exact).abs().max() / exact.abs().max()).item()
    assert error < 1e-5, error  # TF32: about 5e-4
    product = (x.to(device).flatten(1) @ x.to(device).flatten(1).T).cpu().double()
    exact = x.double().flatten(1) @ x.double().flatten(1).T
    assert ((product - exact).abs().max() / exact.abs().max()).item() < 1e-5
    return f"relative error {error:.0e}"
